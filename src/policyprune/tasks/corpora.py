"""Documents of a corpus, from the hub or from files, split so that calibration and test never share one."""

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from transformers import PreTrainedTokenizerBase

from policyprune.config.schema import Chat, LanguageModeling
from policyprune.errors import UsageError
from policyprune.storage.hub import snapshot
from policyprune.storage.sources import locate
from policyprune.tasks.chat import ChatTemplate, key_of, messages_of, template_of
from policyprune.tasks.tables import (
    NoTableError,
    article_texts,
    in_one_line,
    json_lines,
    letters,
    named,
    objects,
    read_table,
    squad_articles,
    text_of,
)

TEXTS = (".txt", ".json", ".jsonl")
TABLES = (".csv", ".tsv", ".parquet")
SHUFFLE_BUFFER = 10_000


@dataclass(frozen=True)
class Document:
    """A text, and what its place in the hashed split depends on."""

    key: str
    text: str

    def share(self) -> float:
        """A number in [0, 1) that depends on the key alone, the same on every machine."""
        return int(hashlib.sha256(self.key.encode()).hexdigest()[:12], 16) / 16**12

    def letters(self) -> str:
        """Hash of the text's letters and digits alone, the same for copies of a text that are set otherwise."""
        return hashlib.sha256(letters(self.text).encode()).hexdigest()


@dataclass(frozen=True)
class Reader:
    """What makes a document of a row: the columns of a task, and the template that sets conversations."""

    task: LanguageModeling
    template: ChatTemplate | None = None

    def document(self, row: Any, number: int) -> Document:
        """The document of a row; null is "". NoTableError for a row that is no object or whose text is none."""
        task = self.task
        if not isinstance(row, dict):
            raise NoTableError(
                f"holds {named(row)} as row {number}, where an object with {task.text_column!r} is meant"
            )
        for key, column in (("task.text_column", task.text_column), ("task.key_column", task.key_column)):
            if column and column not in row:
                raise UsageError(f"{key}: {column!r} is not one of {', '.join(row)}")
        content, where = row[task.text_column], f"{task.text_column!r} of row {number}"
        if self.template is not None:
            messages = messages_of(content, where)
            own, text = key_of(messages), self.template.text(messages, where)
        elif isinstance(content, str | None):
            own = text = content or ""
        else:
            raise NoTableError(f"holds {named(content)} as {where}, where a text is meant")
        return self.plain(text, number, str(row[task.key_column]) if task.key_column else own)

    def plain(self, text: str, number: int, key: str | None = None) -> Document:
        """The document of a text, by default its own key."""
        key = text if key is None else key
        try:
            f"{key}{text}".encode()
        except UnicodeEncodeError as error:  # JSON can state half of a surrogate pair
            raise NoTableError(f"holds half of a surrogate pair in row {number}, which is no text") from error
        return Document(key, text)

    def documents(self, rows: Iterable[Any]) -> Iterator[Document]:
        """Those of all rows."""
        return (self.document(row, number) for number, row in enumerate(rows, 1))


def _reader(task: LanguageModeling, tokenizer: PreTrainedTokenizerBase | None) -> Reader:
    if not isinstance(task, Chat):
        return Reader(task)
    assert tokenizer is not None, "conversations are set by the template of a tokenizer"
    return Reader(task, template_of(tokenizer, task.template))


def test_documents(task: LanguageModeling, tokenizer: PreTrainedTokenizerBase | None) -> list[Document]:
    """The held-out documents, in their own order; of a hub data set also the blank rows, as the papers join them.

    The tokenizer sets conversations; other texts need none.
    """
    reader = _reader(task, tokenizer)
    if task.test_source is not None:
        rows = _hub("task.test_source", task.test_source, task.test_subset, {}, task.test_split)
        documents = _of_hub("task.test_source", task.test_source, rows, reader)
    elif task.source is not None:
        documents = _of_hub("task.source", task.source, _own_split(task, task.test_split), reader)
    elif task.test_files:
        documents = _files(task.test_files, reader, "task.test_files")
    else:
        documents = (d for d in _files(task.files or [], reader) if d.share() < task.test_fraction)
    return list(islice(documents, task.test_documents))


def calibration_documents(
    task: LanguageModeling, held_out: set[str], tokenizer: PreTrainedTokenizerBase | None
) -> Iterator[Document]:
    """The training documents but those whose key is in `held_out`, shuffled by the calibration seed.

    The tokenizer sets conversations; other texts need none.
    """
    reader, seed = _reader(task, tokenizer), task.calibration.drawn_by
    documents: Iterable[Document]
    if task.source is not None:
        stream = _own_split(task, task.calibration_split).shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
        documents = _of_hub("task.source", task.source, stream, reader)
    else:
        documents = [d for d in _files(task.files or [], reader) if task.test_files or d.share() >= task.test_fraction]
        random.Random(seed).shuffle(documents)
    yield from (d for d in documents if d.text.strip() and d.key not in held_out)


def documents_of_file(key: str, name: str) -> list[Document]:
    """The texts of one file, whose key errors name."""
    return list(_files([name], Reader(LanguageModeling(name=name)), key))


def _own_split(task: LanguageModeling, split: str) -> Any:
    assert task.source is not None
    return _hub("task.source", task.source, task.subset, task.data_files, split)


def _hub(key: str, source: str, subset: str | None, files: dict[str, str], split: str) -> Any:
    from datasets import load_dataset

    try:
        place = str(snapshot(source) or source) if constants.is_offline_mode() else source  # not `datasets`' own cache
        return load_dataset(place, subset, data_files=files or None, split=split, streaming=True)
    except (ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"{key}: {source!r} (split {split}) cannot be loaded: {reason}") from error


def _of_hub(key: str, source: str, rows: Iterable[Any], reader: Reader) -> Iterator[Document]:
    with in_one_line(key, source):
        yield from reader.documents(rows)


def _files(names: list[str], reader: Reader, key: str = "task.files") -> Iterator[Document]:
    """The documents of files that have text."""
    for name in names:
        path = locate(key, name)
        if path is None:
            raise UsageError(f"{key}: {name!r} does not exist")
        empty = True
        with in_one_line(key, name):
            for document in _read(path, name, reader, key):
                if document.text.strip():
                    empty = False
                    yield document
        if empty:
            raise UsageError(f"{key}: {name!r} holds no text")


def _read(path: Path, name: str, reader: Reader, key: str) -> Iterator[Document]:
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if path.is_dir() or suffix in TABLES:
        return reader.documents(read_table(key, name))
    if suffix not in TEXTS:
        raise UsageError(f"{key}: {path.name!r} is none of {', '.join((*TEXTS, *TABLES))} (optionally .gz)")
    text = text_of(path)
    if suffix == ".txt":
        if reader.template is not None:
            raise NoTableError(
                f"is text, where rows with {reader.task.text_column!r} are meant (.jsonl, .json, .parquet)"
            )
        paragraphs = re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n").replace("\r", "\n"))
        return (Document(text.strip(), text.strip()) for text in paragraphs)
    if not text.strip():
        return iter(())
    return reader.documents(json_lines(text)) if suffix == ".jsonl" else _from_json(json.loads(text), reader)


def _from_json(content: Any, reader: Reader) -> Iterator[Document]:
    """SQuAD's articles, a list of texts or of rows, rows by name, or a list for each column."""
    articles = squad_articles(content)
    if articles is not None:
        return reader.documents(article_texts(articles))
    texts = isinstance(content, list) and content and all(isinstance(text, str) for text in content)
    if texts and reader.template is None:
        return (reader.plain(text, row) for row, text in enumerate(content, 1))
    by_name = isinstance(content, dict) and all(isinstance(row, dict) for row in content.values())
    return reader.documents(content.values() if by_name else objects(content))
