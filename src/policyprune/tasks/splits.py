"""Splits of labelled data: from the hub, from files, or from installed packages."""

import csv
import functools
import gzip
import json
import logging
import re
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset, load_from_disk
from huggingface_hub import HfApi

from policyprune.config.schema import Examples, Labelled
from policyprune.errors import UsageError
from policyprune.models.sources import locate

log = logging.getLogger(__name__)


def load_split(task: Labelled, split: str) -> tuple[Dataset, str]:
    """The rows of a split, and where they came from."""
    files = task.data_files
    if split in files:
        return _clean(_from_file(files[split], "task.data_files"), task), files[split]
    if task.source is None:
        raise UsageError(f"task.data_files: no file for the split {split!r}, give ++task.data_files.{split}=...")
    offline = task.offline_files.get(split)
    if offline is not None and not reachable(task.source):
        log.warning("%s cannot be reached, the %s split comes from %s", task.source, split, offline)
        return _clean(_from_file(offline, "task.offline_files"), task), offline
    try:
        rows = load_dataset(task.source, task.subset, split=split)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"task.source: {task.source!r} (split {split}) cannot be loaded: {reason}") from error
    return _clean(rows, task), f"{task.source}/{task.subset or ''}"


@functools.cache
def reachable(source: str) -> bool:
    """Whether the hub answers for a data set; asked once, so that nothing retries for minutes where there is no net."""
    try:
        HfApi().dataset_info(source, timeout=5)
    except Exception:  # the errors are those of whichever HTTP client is installed
        return False
    return True


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
