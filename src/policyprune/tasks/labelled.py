"""Labelled data: its splits, from the hub, files or installed packages, and its examples as padded tensors."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from policyprune.config.schema import Examples, Labelled
from policyprune.config.validate import task_origin
from policyprune.errors import UsageError
from policyprune.storage.hub import NO_NETWORK, snapshot, trouble
from policyprune.tasks.tables import letters, read_table

log = logging.getLogger(__name__)


def load_splits(task: Labelled) -> dict[str, tuple[Dataset, str]]:
    """The rows of the calibration split and of every test split, and where they came from: all from one origin."""
    origin = task_origin(task)
    loaded = {
        split: load_split(task, split, origin == "embedded")
        for split in dict.fromkeys([task.calibration_split, *task.test_splits])
    }
    if task.offline_files and origin in ("hub", "embedded"):
        sources = ", ".join(f"{split} from {source}" for split, (_, source) in loaded.items())
        log.info("task.origin=%s: %s", origin, sources)
    return loaded


def load_split(task: Labelled, split: str, embedded: bool = False) -> tuple[Dataset, str]:
    """The rows of a split, and where they came from."""
    if split in task.data_files:
        source = task.data_files[split]
        rows = read_table(f"task.data_files.{split}", source)
    elif embedded:
        source = task.offline_files[split]
        rows = read_table(f"task.offline_files.{split}", source)
    elif task.source is None:
        raise UsageError(f"task.data_files: no file for the split {split!r}, give ++task.data_files.{split}=...")
    else:
        source, rows = f"{task.source}/{task.subset or ''}", _from_hub(task.source, task, split)
    chosen = _clean(rows, task)
    if len(chosen) == 0:
        raise UsageError(f"task.keep_rows: none of the {len(rows)} rows of {split} ({source}) is left")
    return chosen, source


def _from_hub(source: str, task: Labelled, split: str) -> Dataset:
    away = not Path(source).is_dir() and trouble(source) == NO_NETWORK
    place = str(snapshot(source) or source) if away else source
    try:
        return load_dataset(place, task.subset, split=split)
    except Exception as error:  # of whatever library reads it
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"task.source: {source!r} (split {split}) cannot be loaded: {reason}") from error


def check_texts(rows: Dataset, column: str, split: str) -> None:
    """UsageError for cells that are no text."""
    values = list(rows[column])
    wrong = [row for row, value in enumerate(values) if not isinstance(value, str)]
    if wrong:
        raise UsageError(
            f"task.data_files: {len(wrong)} of {len(values)} cells of {column!r} in {split} are no text (the first is "
            f"{values[wrong[0]]!r} in row {wrong[0] + 1})"
        )


def without(rows: Dataset, held_out: list[Dataset], columns: list[str]) -> Dataset:
    """The rows whose text, by letters and digits alone, is no row's text in `held_out`."""
    held_out_texts = {_letters(row, columns) for rows in held_out for row in rows}
    return rows.filter(lambda row: _letters(row, columns) not in held_out_texts)


def drawn(rows: Dataset, examples: Examples) -> Dataset:
    """As many rows as asked for, drawn by the seed."""
    if len(rows) == 0:
        raise UsageError("task.calibration_split: every row of it is a row of a test split, nothing is left")
    count = examples.count or len(rows)
    if len(rows) < count:
        raise UsageError(f"task.calibration.count: {count} is more than the {len(rows)} there are")
    return rows.shuffle(seed=examples.drawn_by).select(range(count))


def _letters(row: dict[str, Any], columns: list[str]) -> str:
    return "|".join(letters(str(row[column])) for column in columns)


def _clean(rows: Dataset, task: Labelled) -> Dataset:
    for column, value in task.keep_rows.items():
        if column in rows.column_names:
            rows = rows.filter(lambda row, column=column, value=value: str(row[column]) == value)
    for old, new in task.rename.items():
        if old in rows.column_names and new not in rows.column_names:
            rows = rows.rename_column(old, new)
    return rows


@dataclass(frozen=True)
class Encoded:
    """Arguments of a model's forward, each (N, longest), and the tokens of each example without padding (N,)."""

    tensors: dict[str, Tensor]
    lengths: Tensor

    def first(self, count: int) -> "Encoded":
        """The first `count` examples."""
        return Encoded({name: tensor[:count] for name, tensor in self.tensors.items()}, self.lengths[:count])

    def chosen(self, index: Tensor) -> "Encoded":
        """The examples `index`, as wide as before."""
        return Encoded({name: tensor[index] for name, tensor in self.tensors.items()}, self.lengths[index])

    def inputs(self, rows: Tensor) -> dict[str, Tensor]:
        """The examples `rows` (B,), no wider than the longest of them."""
        longest = int(self.lengths[rows].max())
        return {name: tensor[rows, :longest] for name, tensor in self.tensors.items()}


def encode(tokenizer: PreTrainedTokenizerBase, examples: dict[str, list[list[int]]]) -> Encoded:
    """Pad lists of input_ids (and token_type_ids) to one width, with an attention mask."""
    ids = [torch.tensor(row) for row in examples["input_ids"]]
    lengths = torch.tensor([len(row) for row in ids])
    pad = float(tokenizer.pad_token_id or 0)
    tensors = {"input_ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad)}
    width = tensors["input_ids"].shape[1]
    tensors["attention_mask"] = (torch.arange(width) < lengths[:, None]).long()
    if "token_type_ids" in examples:
        types = [torch.tensor(row) for row in examples["token_type_ids"]]
        tensors["token_type_ids"] = torch.nn.utils.rnn.pad_sequence(types, batch_first=True)
    return Encoded(tensors, lengths)
