"""Reading documents, and keeping calibration and test apart."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from harness import paragraphs, write_corpus
from policyprune.config.schema import LanguageModeling
from policyprune.errors import UsageError
from policyprune.tasks import corpora
from policyprune.tasks.corpora import Document, calibration_documents

MakeTask = Callable[..., LanguageModeling]


def split(task: LanguageModeling) -> tuple[list[str], list[str]]:
    """Texts of the calibration and of the test documents."""
    held_out = corpora.test_documents(task, None)
    calibration = calibration_documents(task, {document.key for document in held_out if document.text.strip()}, None)
    return [document.text for document in calibration], [document.text for document in held_out]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.txt.gz", "a.jsonl.gz", "a.json.gz"])
def test_every_format_holds_the_same_documents(tmp_path: Path, text_task: MakeTask, name: str) -> None:
    texts = paragraphs(30)
    calibration, test = split(text_task(files=[write_corpus(tmp_path / name, texts)]))
    assert sorted(calibration + test) == sorted(texts)
    assert test == [text for text in texts if text in set(test)], "the test documents are not in their own order"


def test_json_object_of_rows(tmp_path: Path, text_task: MakeTask) -> None:
    texts = paragraphs(10)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({f"id{number}": {"text": text} for number, text in enumerate(texts)}))
    calibration, test = split(text_task(files=[path]))
    assert sorted(calibration + test) == sorted(texts)


def test_articles_of_squad_are_documents(tmp_path: Path, text_task: MakeTask) -> None:
    """Each once, however many questions are asked about it, and whole on one side of the split."""
    texts = paragraphs(60)
    articles = [
        {
            "title": f"article {start}",
            "paragraphs": [
                {"context": text, "qas": [{"question": question, "id": question, "answers": []} for question in "abc"]}
                for text in texts[start : start + 3]
            ],
        }
        for start in range(0, 60, 3)
    ]
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"version": "1.1", "data": articles}))
    calibration, test = split(text_task(files=[path], key_column="title"))
    assert sorted(calibration + test) == sorted("\n\n".join(texts[start : start + 3]) for start in range(0, 60, 3))
    assert calibration
    assert test


@pytest.mark.parametrize(
    ("article", "words"),
    [({"paragraphs": [{"qas": []}]}, "no 'context' in paragraph 1 of article 2"), (3, "no 'paragraphs' in article 2")],
)
def test_broken_articles_are_a_usage_error(tmp_path: Path, text_task: MakeTask, article: Any, words: str) -> None:
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "one", "qas": []}]}, article]}))
    with pytest.raises(UsageError, match=rf"task\.files: .*squad\.json.*{words}"):
        split(text_task(files=[path]))


def test_several_files_are_one_corpus(tmp_path: Path, text_task: MakeTask) -> None:
    first, second = paragraphs(20, seed=1), paragraphs(20, seed=2)
    files = [write_corpus(tmp_path / "a.txt", first), write_corpus(tmp_path / "b.jsonl", second)]
    calibration, test = split(text_task(files=files))
    assert sorted(calibration + test) == sorted(first + second)


def test_paragraphs_of_blanks_are_no_documents(tmp_path: Path, text_task: MakeTask) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n\n\n\n   \n\n two \n\n")
    calibration, test = split(text_task(files=[path]))
    assert sorted(calibration + test) == ["one", "two"]


def test_hashed_split_is_disjoint_and_about_as_large_as_asked(tmp_path: Path, text_task: MakeTask) -> None:
    texts = paragraphs(400)
    calibration, test = split(text_task(files=[write_corpus(tmp_path / "a.txt", texts)], test_fraction=0.25))
    assert not set(calibration) & set(test)
    assert 60 <= len(test) <= 140


def test_hashed_split_depends_on_the_document_alone(tmp_path: Path, text_task: MakeTask) -> None:
    texts = paragraphs(60)
    whole = split(text_task(files=[write_corpus(tmp_path / "a.jsonl", texts)]))[1]
    reordered = write_corpus(tmp_path / "b.jsonl", [*paragraphs(20, seed=9), *reversed(texts)])
    assert {text for text in split(text_task(files=[reordered]))[1] if text in set(texts)} == set(whole)


def test_hashed_split_ignores_the_seed(tmp_path: Path, text_task: MakeTask) -> None:
    path = write_corpus(tmp_path / "a.jsonl", paragraphs(60))
    assert split(text_task(files=[path], seed=0))[1] == split(text_task(files=[path], seed=1))[1]


def test_share_is_known() -> None:
    assert Document("title", "text").share() == Document("title", "another text").share()
    assert Document("title", "").share() == pytest.approx(0.667758, abs=1e-6)  # the same on every machine
    assert all(0 <= Document(str(number), "").share() < 1 for number in range(100))


def test_key_column_decides_the_side(tmp_path: Path, text_task: MakeTask) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"text": text, "title": f"title {number % 10}"} for number, text in enumerate(paragraphs(80))]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    calibration, test = split(text_task(files=[path], key_column="title", test_fraction=0.5))
    titles = {row["text"]: row["title"] for row in rows}
    sides = [{titles[text] for text in texts} for texts in (calibration, test)]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]


def test_repeated_documents_fall_on_one_side(tmp_path: Path, text_task: MakeTask) -> None:
    texts = paragraphs(40)
    path = write_corpus(tmp_path / "a.jsonl", texts + texts)
    calibration, test = split(text_task(files=[path]))
    assert not set(calibration) & set(test)
    assert len(calibration) + len(test) == 80


@pytest.mark.parametrize("position", [0, 19, 39])
@pytest.mark.parametrize("ending", ["", "\n"])
def test_a_repeated_paragraph_falls_on_one_side_wherever_it_stands(
    tmp_path: Path, text_task: MakeTask, position: int, ending: str
) -> None:
    texts = paragraphs(40)
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join([*texts, texts[position]]) + ending)
    for fraction in (0.2, 0.5, 0.8):
        calibration, test = split(text_task(files=[path], test_fraction=fraction))
        assert not set(calibration) & set(test)


def test_test_files_never_overlap_with_calibration(tmp_path: Path, text_task: MakeTask) -> None:
    texts = paragraphs(40)
    files = [write_corpus(tmp_path / "train.jsonl", texts)]
    test_files = [write_corpus(tmp_path / "test.jsonl", texts[30:] + paragraphs(5, seed=3))]
    calibration, test = split(text_task(files=files, test_files=test_files))
    assert test == texts[30:] + paragraphs(5, seed=3)
    assert sorted(calibration) == sorted(texts[:30])


def test_test_paragraphs_at_the_end_of_a_file_do_not_overlap_either(tmp_path: Path, text_task: MakeTask) -> None:
    texts = paragraphs(12)
    (tmp_path / "train.txt").write_text("\n\n".join(texts) + "\n")
    (tmp_path / "test.txt").write_text("\n\n".join(texts[:3]) + "\n")
    calibration, test = split(text_task(files=[tmp_path / "train.txt"], test_files=[tmp_path / "test.txt"]))
    assert test == texts[:3]
    assert not set(calibration) & set(test)


def test_capped_test_documents_do_not_fall_to_calibration(tmp_path: Path, text_task: MakeTask) -> None:
    path = write_corpus(tmp_path / "a.txt", paragraphs(60))
    all_calibration, all_test = split(text_task(files=[path]))
    calibration, test = split(text_task(files=[path], test_documents=2))
    assert test == all_test[:2]
    assert calibration == all_calibration


def test_calibration_order_follows_its_seed(tmp_path: Path, text_task: MakeTask) -> None:
    path = write_corpus(tmp_path / "a.txt", paragraphs(60))
    first, again, other = (split(text_task(files=[path], seed=seed))[0] for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_wrong_column_names_the_columns(tmp_path: Path, text_task: MakeTask, name: str) -> None:
    path = write_corpus(tmp_path / name, paragraphs(4), column="body")
    with pytest.raises(UsageError, match=r"task\.text_column: 'text' is not one of body"):
        split(text_task(files=[path]))


def test_wrong_key_column_names_the_columns(tmp_path: Path, text_task: MakeTask) -> None:
    path = write_corpus(tmp_path / "a.jsonl", paragraphs(4))
    with pytest.raises(UsageError, match=r"task\.key_column: 'title' is not one of text"):
        split(text_task(files=[path], key_column="title"))


def test_unknown_file_type_names_the_known_ones(tmp_path: Path, text_task: MakeTask) -> None:
    path = tmp_path / "a.docx"
    path.write_text("text\nhello\n")
    with pytest.raises(UsageError, match=r"a\.docx.*\.txt, \.json, \.jsonl, \.csv, \.tsv, \.parquet"):
        split(text_task(files=[path]))


@pytest.mark.parametrize("line", ['{"text": "cut off', "[1, 2]", '"a string"'])
def test_broken_row_is_a_usage_error(tmp_path: Path, text_task: MakeTask, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(UsageError, match=r"task\."):
        split(text_task(files=[path]))


TEXTS = paragraphs(12)
ROWS = [{"text": text} for text in TEXTS]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.json", json.dumps(TEXTS)),
        ("columns.json", json.dumps({"text": TEXTS, "id": list(range(12))})),
        ("data.json", json.dumps({"data": ROWS})),
        ("null.json", json.dumps([*ROWS, {"text": None}])),
        ("marked.json", "\ufeff" + json.dumps(ROWS)),
        ("marked.jsonl", "\ufeff" + "\n".join(map(json.dumps, ROWS))),
        ("marked.txt", "\ufeff" + "\n\n".join(TEXTS)),
        ("windows.txt", "\r\n\r\n".join(TEXTS)),
        (
            "other [columns].jsonl",
            "\n".join(json.dumps({**row, "x": n if n % 2 else "n"}) for n, row in enumerate(ROWS)),
        ),
        ("[0].txt", "\n\n".join(TEXTS)),
        ("table.csv", "id,text\n" + "\n".join(f'{n},"{text}"' for n, text in enumerate(TEXTS))),
        ("table.tsv", "text\tid\n" + "\n".join(f"{text}\t0" for text in TEXTS)),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_the_same_texts_in_other_files(
    tmp_path: Path, text_task: MakeTask, name: str, content: str, packed: bool
) -> None:
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    calibration, test = split(text_task(files=[path]))
    assert sorted(calibration + [text for text in test if text]) == sorted(TEXTS)


def test_parquet_and_a_saved_data_set(tmp_path: Path, text_task: MakeTask) -> None:
    rows = Dataset.from_list(ROWS)
    rows.to_parquet(tmp_path / "a.parquet")
    rows.save_to_disk(tmp_path / "saved")
    for name in ("a.parquet", "saved"):
        calibration, test = split(text_task(files=[tmp_path / name]))
        assert sorted(calibration + test) == sorted(TEXTS)


def test_rows_without_text_change_nothing(tmp_path: Path, text_task: MakeTask) -> None:
    """A null between two texts put another separator into the test text."""
    rows = [{"text": text} for text in TEXTS]
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "nulls.jsonl").write_text("".join(json.dumps(row) + '\n{"text": null}\n' for row in rows))
    plain, nulls = (
        [document.text for document in corpora.test_documents(text_task(files=[], test_files=[tmp_path / name]), None)]
        for name in ("plain.jsonl", "nulls.jsonl")
    )
    assert plain == nulls == list(TEXTS)


def test_a_line_of_spaces_is_a_blank_line(tmp_path: Path, text_task: MakeTask) -> None:
    (tmp_path / "a.txt").write_text("one\n  \ntwo\n\n\nthree\n")
    texts = [
        document.text for document in corpora.test_documents(text_task(files=[], test_files=[tmp_path / "a.txt"]), None)
    ]
    assert texts == ["one", "two", "three"]


LATIN = ("word " * 4000 + "caf\xe9").encode("latin-1")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", LATIN, r"no UTF-8 \(byte 0xe9 at 20003\), save it as UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n' * 2000 + LATIN, r"no UTF-8 \(byte 0xe9 at 48003\)"),
        ("a.json", LATIN, "no UTF-8"),
        ("a.txt.gz", gzip.compress(LATIN, mtime=0), r"no UTF-8 \(byte 0xe9 at 20003\)"),
        ("a.txt.gz", gzip.compress(b"text " * 999, mtime=0)[:-20], "cannot be read: Compressed file ended"),
        ("a.json.gz", b"no gzip at all", "cannot be read: Not a gzipped file"),
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n\n \n", "holds no text"),
        ("a.json", b"", "holds no text"),
        ("a.json", b"[]", "holds no text"),
        ("a.jsonl", b"\n\n", "holds no text"),
        ("a.jsonl", b'{"text": null}\n', "holds no text"),
        ("a.json", b'{"text": ["a", "b"], "id": [1]}', "columns of different lengths: text 2, id 1"),
        ("a.json", b'["a", 5]', "holds a string as row 1, where an object with 'text' is meant"),
        ("a.json", b'[{"text": "a"}, null]', "holds null as row 2"),
        ("a.json", b"5", "holds a number, where a list of objects is meant"),
        ("a.json", b'{"text": "a"}', "holds an object, where a list of objects is meant"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ["a"]}\n', "holds a list as 'text' of row 2, where a text is meant"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "has no JSON in line 2"),
        ("a.jsonl", b'{"text": "a \\ud800"}\n', "holds half of a surrogate pair in row 1"),
        ("a.json", b'["fine", "\\udfff"]', "holds half of a surrogate pair in row 2"),
        ("a.csv", b'text\n"a\n', "cannot be read"),
        ("a.parquet", b"no parquet", "cannot be read"),
    ],
)
@pytest.mark.parametrize("key", ["files", "test_files"])
def test_a_file_that_is_no_text_is_refused_in_one_line(
    tmp_path: Path, text_task: MakeTask, key: str, name: str, content: bytes, reason: str
) -> None:
    bad, good = tmp_path / name, write_corpus(tmp_path / "good.txt", TEXTS)
    bad.write_bytes(content)
    with pytest.raises(UsageError, match=rf"^task\.{key}: '.*{name}' .*{reason}") as refused:
        split(text_task(**{"files": [good], key: [bad]}))
    assert "\n" not in str(refused.value)


def test_a_folder_and_a_file_without_leave_are_refused_in_one_line(
    tmp_path: Path, text_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"^task\.files: '.*' cannot be read: .*neither"):
        split(text_task(files=[tmp_path]))
    path = write_corpus(tmp_path / "a.txt", TEXTS)

    def refused(*arguments: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(UsageError, match=r"^task\.files: '.*a\.txt' cannot be read: Permission denied$"):
        split(text_task(files=[path]))


@pytest.mark.parametrize("key", ["files", "test_files"])
def test_missing_file_names_the_key(tmp_path: Path, text_task: MakeTask, key: str) -> None:
    there = write_corpus(tmp_path / "a.txt", paragraphs(10))
    missing: dict[str, Any] = {"files": [there], key: [tmp_path / "nowhere.txt"]}
    with pytest.raises(UsageError, match=rf"task\.{key}: .*nowhere\.txt"):
        split(text_task(**missing))


@pytest.fixture
def hub_like(tmp_path: Path, text_task: MakeTask) -> Callable[..., LanguageModeling]:
    """A data set with blank rows and splits, in a local folder that `datasets` reads as it reads the hub."""
    rows = {
        "train": [" = Head = \n", "", "train one\n", "", "train two\n"],
        "test": ["", "test one\n", "", "test two\n"],
    }
    for name, texts in rows.items():
        write_corpus(tmp_path / f"{name}.jsonl", texts)
    files = {name: f"{name}.jsonl" for name in rows}

    def make(**changes: Any) -> LanguageModeling:
        return text_task(**{"source": str(tmp_path), "data_files": files, **changes})

    return make


def test_blank_rows_of_a_data_set_stay_in_the_test_text(hub_like: Callable[..., LanguageModeling]) -> None:
    calibration, test = split(hub_like())
    assert test == ["", "test one\n", "", "test two\n"]
    assert sorted(calibration) == [" = Head = \n", "train one\n", "train two\n"]


def test_rows_of_a_data_set_that_are_in_both_splits_are_left_out(hub_like: Callable[..., LanguageModeling]) -> None:
    calibration, _ = split(hub_like(data_files={"train": "*.jsonl", "test": "test.jsonl"}))
    assert sorted(calibration) == [" = Head = \n", "train one\n", "train two\n"]


def test_data_set_calibration_follows_the_seed(hub_like: Callable[..., LanguageModeling]) -> None:
    orders = [split(hub_like(seed=seed))[0] for seed in (0, 0, *range(1, 6))]
    assert orders[0] == orders[1]
    assert any(order != orders[0] for order in orders)


def test_wrong_column_of_a_data_set_names_the_columns(hub_like: Callable[..., LanguageModeling]) -> None:
    with pytest.raises(UsageError, match=r"task\.text_column: 'body' is not one of text"):
        split(hub_like(text_column="body"))


def test_wrong_split_of_a_data_set_is_a_usage_error(hub_like: Callable[..., LanguageModeling]) -> None:
    with pytest.raises(UsageError, match=r"task\.source: .*validation"):
        split(hub_like(test_split="validation"))


def test_data_set_that_is_not_there_is_a_usage_error(text_task: MakeTask) -> None:
    with pytest.raises(UsageError, match=r"task\.source: 'nobody/nothing'"):
        split(text_task(source="nobody/nothing"))


def test_the_test_split_may_be_another_data_sets(tmp_path: Path, text_task: MakeTask) -> None:
    """Calibration on C4 and perplexity on WikiText-2: two sources, each with its own splits."""
    for place, names in {"first": ("train", "test"), "second": ("test",)}.items():
        (tmp_path / place).mkdir()
        for seed, name in enumerate(names):
            write_corpus(tmp_path / place / f"{name}.jsonl", [f"{place} {name} {t}" for t in paragraphs(5, seed)])
    task = text_task(source=str(tmp_path / "first"), test_source=str(tmp_path / "second"))
    calibration, test = split(task)
    assert len(calibration) == len(test) == 5
    assert all(text.startswith("first train") for text in calibration)
    assert all(text.startswith("second test") for text in test)
    with pytest.raises(UsageError, match=r"task\.test_source: .*cannot be loaded"):
        corpora.test_documents(text_task(source=str(tmp_path / "first"), test_source=str(tmp_path / "none")), None)
