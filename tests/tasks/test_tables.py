"""Files of users: what is a table is read as it is, what is none is refused in one line that names key and file."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from encoders import articles
from policyprune.errors import UsageError
from policyprune.tasks.question_answering import checked_rows
from policyprune.tasks.tables import answers_of, read_table

KEY = "task.data_files.train"
ROWS = [{"sentence": "a", "label": 0}, {"sentence": "b", "label": 1}]


def put(path: Path, content: bytes | str | object) -> str:
    """Write bytes or text as they are, anything else as JSON."""
    if not isinstance(content, bytes | str):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
def test_text_is_text_whatever_it_looks_like(tmp_path: Path, name: str) -> None:
    mark = "\t" if name.endswith(".tsv") else ","
    words = ["None", "N/A", "null", "NA", "nan", "007", "1e5", "True"]
    lines = [f"sentence{mark}label", *(f"{word}{mark}{i}" for i, word in enumerate(words)), f"{mark}9"]
    rows = read_table(KEY, put(tmp_path / name, "\n".join(lines)))
    assert rows["sentence"][:] == [*words, ""]
    assert rows["label"][:] == [str(i) for i in (*range(8), 9)]


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.json", "rows.jsonl", "rows.csv.gz"])
def test_a_byte_order_mark_is_read_away(tmp_path: Path, name: str) -> None:
    mark = "\t" if ".tsv" in name else ","
    table = f"sentence{mark}label\r\na{mark}0\r\nb{mark}1\r\n"
    text = {".json": json.dumps(ROWS), ".jsonl": "\n".join(map(json.dumps, ROWS))}.get(Path(name).suffix, table)
    content = b"\xef\xbb\xbf" + text.encode()
    rows = read_table(KEY, put(tmp_path / name, gzip.compress(content) if name.endswith(".gz") else content))
    assert rows.column_names == ["sentence", "label"]
    assert rows["sentence"][:] == ["a", "b"]


def test_a_cell_in_quotation_marks_may_hold_marks_and_lines(tmp_path: Path) -> None:
    text = 'sentence,label\n"a, ""b""\nand c",1\n\nd,0\n'
    assert read_table(KEY, put(tmp_path / "rows.csv", text))["sentence"][:] == ['a, "b"\nand c', "d"]


@pytest.mark.parametrize("content", [ROWS, {"data": ROWS}, {"sentence": ["a", "b"], "label": [0, 1]}])
def test_json_in_rows_and_in_columns(tmp_path: Path, content: Any) -> None:
    assert list(read_table(KEY, put(tmp_path / "rows.json", content))) == ROWS


@pytest.mark.parametrize("folder", ["a [b] *c", "with space", "épsilon"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "saved"])
def test_paths_are_names_and_no_patterns(tmp_path: Path, folder: str, kind: str) -> None:
    (tmp_path / folder).mkdir()
    path = tmp_path / folder / f"rows [0].{kind}"
    if kind == "saved":
        Dataset.from_list(ROWS).save_to_disk(path)
    else:
        text = {"csv": "sentence,label\na,0\nb,1\n", "jsonl": "\n".join(map(json.dumps, ROWS))}
        put(path, text[kind]) if kind in text else Dataset.from_list(ROWS).to_pandas().to_parquet(path)
    assert read_table(KEY, str(path))["sentence"][:] == ["a", "b"]


def test_nothing_is_written_to_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for name, text in (("a.csv", "sentence,label\na,0\n"), ("a.jsonl", json.dumps(ROWS[0]))):
        read_table(KEY, put(tmp_path / name, text))
    Dataset.from_list(ROWS).to_pandas().to_parquet(tmp_path / "a.parquet")
    read_table(KEY, str(tmp_path / "a.parquet"))
    assert not (tmp_path / "cache").exists()


WRONG: dict[str, tuple[str, bytes | str | object, str]] = {
    "latin-1": ("a.csv", "sentence,label\ncafé,1\n".encode("latin-1"), r"is no UTF-8 \(byte 0xe9 at 18\)"),
    "latin-1 lines": ("a.jsonl", b'{"sentence": "caf\xe9"}', r"is no UTF-8 \(byte 0xe9"),
    "too many cells": ("a.csv", "sentence,label\na,0\nb,c,1\n", r"has 3 cells in line 3, and 2 columns"),
    "too few cells": ("a.tsv", "sentence\tlabel\na\n", r"has 1 cells in line 2, and 2 columns"),
    "column twice": ("a.csv", "label,label\n1,2\n", r"has the column 'label' twice"),
    "header alone": ("a.csv", "sentence,label\n", "holds no rows"),
    "open quotation": ("a.csv", 'sentence,label\n"a,1\n', "cannot be read: unexpected end of data"),
    **{f"empty {kind}": (f"a.{kind}", b"", "holds no rows|cannot be read") for kind in
       ("csv", "tsv", "json", "jsonl", "parquet")},
    "null": ("a.json", None, "holds null, where a list of objects is meant"),
    "a number": ("a.json", 7, "holds a number, where"),
    "a string": ("a.json", '"text"', "holds a string, where"),
    "an empty list": ("a.json", [], "holds no rows"),
    "an empty object": ("a.json", {}, "holds an object, where"),
    "strings": ("a.json", ["one", "two"], r"holds a string as row 1, where an object"),
    "strings in lines": ("a.jsonl", '{"a": 1}\n"two"\n', r"holds a string as row 2, where an object"),
    "columns of different lengths": ("a.json", {"a": [1, 2], "b": [1]}, r"has columns of different lengths: a 2, b 1"),
    "mixed column": ("a.json", [{"label": 1}, {"label": "one"}], "mixes values in the column 'label'"),
    "huge number": ("a.json", [{"label": 10**30}], "mixes values in the column 'label'"),
    "half a character": ("a.json", '[{"a": "\\ud800"}]', "mixes values in the column 'a'"),
    "broken json": ("a.json", '[{"a": ', "cannot be read: Expecting value"),
    "deep json": ("a.json", "[" * 100_000, "cannot be read: "),
    "broken line": ("a.jsonl", '{"a": 1}\n{"a": \n', "has no JSON in line 2"),
    "no parquet": ("a.parquet", b"PAR1 not really", "cannot be read: "),
    "no gzip": ("a.json.gz", b"[]", "cannot be read: Not a gzipped file"),
    "cut gzip": ("a.json.gz", gzip.compress(b"[1, 2, 3] " * 99)[:-9], "cannot be read: "),
    "no paragraphs": ("a.json", {"data": [{"paragraphs": []}, {"title": "x"}]}, "has no 'paragraphs' in article 2"),
    "no context": ("a.json", {"data": [{"paragraphs": [{"qas": [{"question": "?"}]}]}]}, "has no 'context' in"),
    "no question": ("a.json", {"data": [{"paragraphs": [{"context": "x", "qas": [{}]}]}]}, "has no 'question' in"),
    "null context": ("a.json", {"data": [{"paragraphs": [{"context": None, "qas": [{"question": "?"}]}]}]},
                     "has null as 'context'"),
    "odd answers": ("a.json",
                    {"data": [{"paragraphs": [{"context": "x", "qas": [{"question": "?", "answers": "x"}]}]}]},
                    "has a string as answers of question 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_table_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    name, content, words = WRONG[case]
    path = put(tmp_path / name, content)
    with pytest.raises(UsageError, match=rf"^{KEY}: '.*{name}' ({words})") as refusal:
        read_table(KEY, path)
    assert "\n" not in str(refusal.value)


def test_folders_that_are_no_table_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(UsageError, match=rf"^{KEY}: '.*a.csv' cannot be read: "):
        read_table(KEY, str(tmp_path / "a.csv"))
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "several")
    with pytest.raises(UsageError, match=rf"^{KEY}: .* holds several splits, name one of them: several/train$"):
        read_table(KEY, str(tmp_path / "several"))
    assert list(read_table(KEY, str(tmp_path / "several" / "train"))) == ROWS


GOLD = {"text": ["b"], "answer_start": [2]}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (GOLD, GOLD),
        ([{"text": "b", "answer_start": 2}], GOLD),
        ([{"text": "b"}], {"text": ["b"], "answer_start": [-1]}),
        (None, {"text": [], "answer_start": []}),
        ([], {"text": [], "answer_start": []}),
    ],
)
def test_answers_in_every_form(tmp_path: Path, value: Any, expected: Any) -> None:
    assert answers_of(value, "row 1") == expected
    rows = [
        {"question": "?", "context": "a b", "answers": value},
        {"question": "?", "context": "a b", "answers": value},
    ]
    loaded = checked_rows(read_table(KEY, put(tmp_path / "rows.json", rows)), "train")
    assert [row["answers"] for row in loaded] == [expected, expected]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"context": None}, r"1 of 1 cells of 'context' in train are no text \(the first is None in row 1\)"),
        ({"question": 3}, r"1 of 1 cells of 'question' in train are no text \(the first is 3 in row 1\)"),
        ({"answers": "b"}, r"train has a string as answers of row 1"),
        ({"answers": {"text": ["b"], "answer_start": []}}, r"train has answers of row 1 whose texts"),
        ({"answers": {"text": [1], "answer_start": [2]}}, r"train has answers of row 1 whose texts"),
    ],
)
def test_questions_that_are_none_are_refused(changes: dict[str, Any], words: str) -> None:
    row = {"question": "?", "context": "a b", "answers": GOLD, **changes}
    with pytest.raises(UsageError, match=rf"^task\.data_files: {words}"):
        checked_rows(Dataset.from_list([row]), "train")


def test_the_nested_form_of_squad_is_flat_rows(tmp_path: Path) -> None:
    rows = read_table(KEY, put(tmp_path / "a.json", articles(2, none=True)))
    assert rows["id"][:] == ["0-0-0", "0-0-1", "0-1-0", "0-1-1"]
    assert [len(row["answers"]["text"]) for row in rows] == [1, 0, 1, 0]
