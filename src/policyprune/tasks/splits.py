"""Splits of labelled data: from the hub, from files, or from installed packages."""

import csv
import gzip
import json
import logging
import re
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset, load_from_disk

from policyprune.config.origins import task_origin
from policyprune.config.schema import Examples, Labelled
from policyprune.errors import UsageError
from policyprune.models.hub import NO_NETWORK, snapshot, trouble
from policyprune.models.sources import locate

log = logging.getLogger(__name__)


def load_splits(task: Labelled) -> dict[str, tuple[Dataset, str]]:
    """The rows of the calibration split and of every test split, and where they came from: all from one origin."""
    origin = task_origin(task)
    loaded = {
        split: load_split(task, split, origin == "embedded")
        for split in dict.fromkeys([task.calibration_split, *task.test_splits])
    }
    if task.offline_files:
        told = ", ".join(f"{split} from {source}" for split, (_, source) in loaded.items())
        log.info("task.origin=%s: %s", origin, told)
    return loaded


def load_split(task: Labelled, split: str, embedded: bool = False) -> tuple[Dataset, str]:
    """The rows of a split, and where they came from."""
    files = task.data_files
    if split in files:
        return _clean(_from_file(files[split], "task.data_files"), task), files[split]
    if embedded:
        source = task.offline_files[split]
        return _clean(_from_file(source, "task.offline_files"), task), source
    if task.source is None:
        raise UsageError(f"task.data_files: no file for the split {split!r}, give ++task.data_files.{split}=...")
    return _clean(_from_hub(task.source, task, split), task), f"{task.source}/{task.subset or ''}"


def _from_hub(source: str, task: Labelled, split: str) -> Dataset:
    away = not Path(source).is_dir() and trouble(source) == NO_NETWORK
    place = str(snapshot(source) or source) if away else source
    try:
        return load_dataset(place, task.subset, split=split)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"task.source: {source!r} (split {split}) cannot be loaded: {reason}") from error


def without(rows: Dataset, held_out: list[Dataset], columns: list[str]) -> Dataset:
    """The rows whose text, by letters and digits alone, is no row's text in `held_out`."""
    known = {_letters(row, columns) for other in held_out for row in other}
    return rows.filter(lambda row: _letters(row, columns) not in known)


def drawn(rows: Dataset, examples: Examples) -> Dataset:
    """As many rows as asked for, drawn by the seed."""
    count = examples.count or len(rows)
    if len(rows) < count:
        raise UsageError(f"task.calibration.count: {count} is more than the {len(rows)} there are")
    return rows.shuffle(seed=examples.seed).select(range(count))


def _letters(row: dict[str, Any], columns: list[str]) -> str:
    texts = [str(row[column]).casefold() for column in columns]
    return "|".join(re.sub(r"[\W_]", "", text) or text for text in texts)


def _clean(rows: Dataset, task: Labelled) -> Dataset:
    for column, value in task.keep_rows.items():
        if column in rows.column_names:
            rows = rows.filter(lambda row, column=column, value=value: str(row[column]) == value)
    for old, new in task.rename.items():
        if old in rows.column_names and new not in rows.column_names:
            rows = rows.rename_column(old, new)
    return rows


def _from_file(name: str, key: str) -> Dataset:
    path = locate(key, name)
    if path is None:
        raise UsageError(f"{key}: {name!r} does not exist")
    if path.is_dir():
        return load_from_disk(str(path))
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"] or [""]
    kind = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".jsonl": "json", ".json": "json"}.get(suffixes[-1])
    if kind is None:
        raise UsageError(f"{key}: {path.name!r} is none of .csv, .tsv, .parquet, .json, .jsonl or a saved data set")
    if suffixes[-1] == ".json":
        try:
            content = _json(path)
        except (json.JSONDecodeError, UnicodeDecodeError, gzip.BadGzipFile) as error:
            raise UsageError(f"{key}: {name!r} cannot be read: {error}") from error
        if isinstance(content, dict) and "data" in content:
            return Dataset.from_list(flatten_squad(content["data"]))
        return Dataset.from_list(content)
    extra: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if suffixes[-1] == ".tsv" else {}
    return load_dataset(kind, data_files=str(path), split="train", **extra)


def _json(path: Path) -> Any:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        return json.load(file)


def flatten_squad(articles: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Questions of SQuAD's nested JSON as flat rows of id, context, question and answers {text, answer_start}."""
    return [
        {
            "id": str(question["id"]),
            "context": paragraph["context"],
            "question": question["question"],
            "answers": {
                "text": [answer["text"] for answer in question.get("answers", [])],
                "answer_start": [answer["answer_start"] for answer in question.get("answers", [])],
            },
        }
        for article in articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
