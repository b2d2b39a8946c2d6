"""Rows from a file of the user's: one reader, which refuses in one line what is no table."""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_from_disk
from datasets.table import InMemoryTable

from policyprune.errors import UsageError
from policyprune.storage.sources import locate

KINDS = (".csv", ".tsv", ".parquet", ".json", ".jsonl")
UNREADABLE = (OSError, EOFError, zlib.error, csv.Error, json.JSONDecodeError, pa.ArrowException, RecursionError)


def read_table(key: str, name: str) -> Dataset:
    """The rows of a file, or of a folder that `save_to_disk` wrote; UsageError names `key`, the file and the fault.

    .csv and .tsv hold text alone, whatever it looks like. Nothing is written to a cache.
    """
    path = locate(key, name)
    if path is None:
        raise UsageError(f"{key}: {name!r} does not exist")
    with in_one_line(key, name):
        rows = _saved(path) if path.is_dir() else _file(path)
    if len(rows) == 0:
        raise UsageError(f"{key}: {name!r} holds no rows")
    return rows


@contextmanager
def in_one_line(key: str, name: str) -> Iterator[None]:
    """What cannot be read inside is a UsageError that names `key`, the file and the fault."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{key}: {name!r} is no UTF-8 (byte {error.object[error.start]:#x} at {error.start}), save it as UTF-8"
        ) from error
    except NoTableError as error:
        raise UsageError(f"{key}: {name!r} {error}") from error
    except UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else _first_line(error)
        raise UsageError(f"{key}: {name!r} cannot be read: {reason}") from error


class NoTableError(ValueError):
    """What was found is no table; the message goes on after the file's name."""


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _saved(path: Path) -> Dataset:
    rows = load_from_disk(str(path))
    if isinstance(rows, Dataset):
        return rows
    raise NoTableError(f"holds several splits, name one of them: {', '.join(f'{path.name}/{split}' for split in rows)}")


def _file(path: Path) -> Dataset:
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind not in KINDS:
        raise NoTableError(f"is none of {', '.join(KINDS)} (optionally .gz), and no saved data set")
    if kind == ".parquet":
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as binary:
            table = pq.ParquetFile(binary).read()
        _check_header(table.column_names)
        return Dataset(InMemoryTable(table))
    text = text_of(path)
    if kind in (".csv", ".tsv"):
        return _delimited(io.StringIO(text, newline=""), kind)
    return _from_rows(list(json_lines(text)) if kind == ".jsonl" else objects(json.loads(text)))


def text_of(path: Path) -> str:
    """A text file as a whole, without its byte order mark; UnicodeDecodeError counts bytes from the beginning."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return file.read().decode("utf-8").removeprefix("\ufeff")


def _delimited(file: TextIO, kind: str) -> Dataset:
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if kind == ".tsv" else {"strict": True}
    reader = csv.reader(file, **dialect)
    header = next(reader, [])
    _check_header(header)
    rows = []
    for row in reader:
        if row and len(row) != len(header):
            raise NoTableError(f"has {len(row)} cells in line {reader.line_num}, and {len(header)} columns")
        rows += [row] if row else []
    return Dataset.from_dict({name: [row[column] for row in rows] for column, name in enumerate(header)})


def _check_header(names: list[str]) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise NoTableError(f"has the column {twice[0]!r} twice")


def letters(text: str) -> str:
    """A text's letters and digits in lower case; one that has none as it is, in lower case."""
    text = text.casefold()
    return re.sub(r"[\W_]", "", text) or text


def json_lines(text: str) -> Iterator[Any]:
    """The value in each line that is not blank; NoTableError names one that has none."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise NoTableError(f"has no JSON in line {number}: {error.msg}") from error


def objects(content: Any) -> list[Any]:
    """Rows of a JSON file: a list of them, alone or as `data`, SQuAD's articles, or a list for each column."""
    articles = squad_articles(content)
    if articles is not None:
        return flatten_squad(articles)
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        rows: list[Any] = content["data"]
        if all(isinstance(row, dict) for row in rows):
            return rows
    if isinstance(content, dict) and content and all(isinstance(column, list) for column in content.values()):
        lengths = {name: len(column) for name, column in content.items()}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise NoTableError(f"has columns of different lengths: {counts}")
        return [dict(zip(content, row, strict=True)) for row in zip(*content.values(), strict=True)]
    if not isinstance(content, list):
        raise NoTableError(f"holds {named(content)}, where a list of objects is meant")
    return content


def _from_rows(rows: list[Any]) -> Dataset:
    wrong = [(number, row) for number, row in enumerate(rows, 1) if not isinstance(row, dict)]
    if wrong:
        number, row = wrong[0]
        raise NoTableError(f'holds {named(row)} as row {number}, where an object such as {{"label": 0}} is meant')
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            raise NoTableError(f"mixes values in the column {name!r}: {_first_line(error)}") from error
    return Dataset(InMemoryTable(pa.table(columns)))


def named(value: Any) -> str:
    """A value's kind in words."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")


def squad_articles(content: Any) -> list[Any] | None:
    """The articles in SQuAD's nested JSON, None for any other content."""
    articles = content.get("data") if isinstance(content, dict) else None
    nested = isinstance(articles, list) and any(isinstance(own, dict) and "paragraphs" in own for own in articles)
    return articles if nested else None


def article_texts(articles: list[Any]) -> list[dict[str, str]]:
    """Title and text of each article of SQuAD's nested JSON: its paragraphs with a blank line between them."""
    rows = []
    for a, article in enumerate(articles, 1):
        paragraphs = _of(article, "paragraphs", f"article {a}")
        texts = [
            _of(paragraph, "context", f"paragraph {p} of article {a}") for p, paragraph in enumerate(paragraphs, 1)
        ]
        rows.append({"title": str(article.get("title", "")), "text": "\n\n".join(texts)})
    return rows


def flatten_squad(articles: list[Any]) -> list[dict[str, Any]]:
    """Questions of SQuAD's nested JSON as flat rows of context, question, answers {text, answer_start} and id."""
    return [
        {
            "context": _of(paragraph, "context", f"paragraph {p} of article {a}"),
            "question": _of(question, "question", f"question {q} of paragraph {p} of article {a}"),
            "answers": answers_of(question.get("answers"), f"question {q} of paragraph {p} of article {a}"),
            "id": str(question.get("id", "")),
        }
        for a, article in enumerate(articles, 1)
        for p, paragraph in enumerate(_of(article, "paragraphs", f"article {a}"), 1)
        for q, question in enumerate(_of(paragraph, "qas", f"paragraph {p} of article {a}"), 1)
    ]


def _of(node: Any, key: str, where: str) -> Any:
    if not isinstance(node, dict) or key not in node:
        raise NoTableError(f"has no {key!r} in {where}")
    if not isinstance(node[key], list if key in ("paragraphs", "qas") else str):
        raise NoTableError(f"has {named(node[key])} as {key!r} in {where}")
    return node[key]


def answers_of(value: Any, where: str) -> dict[str, list[Any]]:
    """Answers as {text: [...], answer_start: [...]} from these, from a list of {text, answer_start}, or from null.

    A start that is not given is -1: the text is looked for. NoTableError for anything else.
    """
    if value is None:
        value = []
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        texts, starts = value["text"], value.get("answer_start")
        starts = [-1] * len(texts) if starts is None else starts
    elif isinstance(value, list) and all(isinstance(answer, dict) and "text" in answer for answer in value):
        texts, starts = [answer["text"] for answer in value], [answer.get("answer_start", -1) for answer in value]
    else:
        raise NoTableError(f"has {named(value)} as answers of {where}, where texts and starts are meant")
    numbers = isinstance(starts, list) and all(isinstance(start, int) for start in starts)
    if not numbers or len(starts) != len(texts) or not all(isinstance(text, str) for text in texts):
        raise NoTableError(f"has answers of {where} whose texts are no strings or whose starts are no numbers")
    return {"text": texts, "answer_start": starts}
