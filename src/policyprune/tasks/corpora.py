"""Documents of a corpus, from the hub or from files, split so that calibration and test never share one."""

import gzip
import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download

from policyprune.config.schema import LanguageModeling
from policyprune.errors import UsageError
from policyprune.models.sources import locate

SHUFFLE_BUFFER = 10_000


@dataclass(frozen=True)
class Document:
    """A text, and what its place in the hashed split depends on."""

    key: str
    text: str

    def share(self) -> float:
        """A number in [0, 1) that depends on the key alone, the same on every machine."""
        return int(hashlib.sha256(self.key.encode()).hexdigest()[:12], 16) / 16**12


def test_documents(task: LanguageModeling) -> list[Document]:
    """The held-out documents, in their own order; of a hub data set also the blank rows, as the papers join them."""
    if task.test_source is not None:
        documents = _from_rows(_hub("task.test_source", task.test_source, task.test_subset, {}, task.test_split), task)
    elif task.source is not None:
        documents = _from_rows(_own(task, task.test_split), task)
    elif task.test_files:
        documents = _files(task.test_files, task, "task.test_files")
    else:
        documents = (d for d in _files(task.files or [], task) if d.share() < task.test_fraction)
    return list(islice(documents, task.test_documents))


def calibration_documents(task: LanguageModeling, held_out: set[str]) -> Iterator[Document]:
    """The training documents but those whose key is in `held_out`, shuffled by the calibration seed."""
    documents: Iterable[Document]
    if task.source is not None:
        stream = _own(task, task.calibration_split).shuffle(seed=task.calibration.seed, buffer_size=SHUFFLE_BUFFER)
        documents = _from_rows(stream, task)
    else:
        documents = [d for d in _files(task.files or [], task) if task.test_files or d.share() >= task.test_fraction]
        random.Random(task.calibration.seed).shuffle(documents)
    yield from (d for d in documents if d.text.strip() and d.key not in held_out)


def _own(task: LanguageModeling, split: str) -> Any:
    assert task.source is not None
    return _hub("task.source", task.source, task.subset, task.data_files, split)


def _hub(key: str, source: str, subset: str | None, files: dict[str, str], split: str) -> Any:
    from datasets import load_dataset

    try:
        place = _cached(source) if constants.is_offline_mode() else source
        return load_dataset(place, subset, data_files=files or None, split=split, streaming=True)
    except (ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"{key}: {source!r} (split {split}) cannot be loaded: {reason}") from error


def _cached(source: str) -> str:
    """The data set's snapshot in the hub cache: offline, `datasets` itself looks at its own Arrow cache only."""
    if Path(source).is_dir():
        return source
    return snapshot_download(source, repo_type="dataset", local_files_only=True)


def _from_rows(rows: Any, task: LanguageModeling) -> Iterator[Document]:
    for row in rows:
        if not isinstance(row, dict) or task.text_column not in row:
            found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise UsageError(f"task.text_column: {task.text_column!r} is not one of {found}")
        if task.key_column and task.key_column not in row:
            raise UsageError(f"task.key_column: {task.key_column!r} is not one of {', '.join(row)}")
        text = str(row[task.text_column] or "")
        yield Document(str(row[task.key_column]) if task.key_column else text, text)


def _files(names: list[str], task: LanguageModeling, key: str = "task.files") -> Iterator[Document]:
    for name in names:
        path = locate(key, name)
        if path is None:
            raise UsageError(f"{key}: {name!r} does not exist")
        try:
            yield from _read(path, task)
        except (json.JSONDecodeError, UnicodeDecodeError, gzip.BadGzipFile) as error:
            raise UsageError(f"{key}: {name!r} cannot be read: {error}") from error


def _read(path: Path, task: LanguageModeling) -> Iterator[Document]:
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        if suffix == ".txt":
            for paragraph in file.read().split("\n\n"):
                if paragraph.strip():
                    yield Document(paragraph.strip(), paragraph.strip())
        elif suffix == ".jsonl":
            yield from _from_rows((json.loads(line) for line in file if line.strip()), task)
        elif suffix == ".json":
            content = json.load(file)
            yield from _from_rows(content.values() if isinstance(content, dict) else content, task)
        else:
            raise UsageError(f"task.files: {path.name!r} is none of .txt, .json, .jsonl (optionally .gz)")
