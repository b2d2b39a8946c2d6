"""Rows of labelled data from files of every kind, from the hub's stand-in, and without those of the test split."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from encoders import articles, reviews, write_lines
from harness import validated
from policyprune.config.schema import Examples, Labelled
from policyprune.errors import UsageError
from policyprune.storage.hub import NO_NETWORK, trouble
from policyprune.tasks import labelled as splits
from policyprune.tasks.labelled import drawn, load_split, load_splits, without
from policyprune.tasks.tables import flatten_squad

ROWS = reviews(6)
Write = Callable[[Path, list[dict[str, Any]]], None]


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    trouble.cache_clear()
    yield
    trouble.cache_clear()


def task(**changes: Any) -> Labelled:
    values: dict[str, Any] = {
        "name": "mine",
        "max_length": 32,
        "calibration": Examples(None, 0),
    }
    return Labelled(**(values | changes))


def zipped(path: Path, text: str) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write(text)


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


WRITERS: dict[str, Write] = {
    "rows.csv": lambda path, rows: Dataset.from_list(rows).to_csv(path),
    "rows.tsv": lambda path, rows: Dataset.from_list(rows).to_csv(path, sep="\t"),
    "rows.parquet": lambda path, rows: Dataset.from_list(rows).to_parquet(path),
    "rows.jsonl": lambda path, rows: write_lines(path, rows),
    "rows.v2.jsonl": lambda path, rows: write_lines(path, rows),
    "rows.jsonl.gz": lambda path, rows: zipped(path, lines(rows)),
    "rows.json": lambda path, rows: path.write_text(json.dumps(rows), encoding="utf-8"),
    "a [1] b.parquet": lambda path, rows: Dataset.from_list(rows).to_pandas().to_parquet(path),
    "rows.json.gz": lambda path, rows: zipped(path, json.dumps(rows)),
    "saved": lambda path, rows: Dataset.from_list(rows).save_to_disk(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_rows(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, ROWS)
    rows, origin = load_split(task(data_files={"train": str(tmp_path / name)}), "train")
    written = [{name: str(value) for name, value in row.items()} for row in ROWS]  # such files hold text alone
    assert list(rows) == (written if name.endswith((".csv", ".tsv")) else ROWS)
    assert origin == str(tmp_path / name)


def test_tabs_separate_and_quotation_marks_are_letters(tmp_path: Path) -> None:
    """GLUE's own files have sentences with a single quotation mark."""
    path = tmp_path / "dev.tsv"
    path.write_text('sentence\tlabel\n"Quiet, he said\t1\nloud\t0\nthe "old" one" too\t1\n', encoding="utf-8")
    rows, _ = load_split(task(data_files={"train": str(path)}), "train")
    assert rows["sentence"][:] == ['"Quiet, he said', "loud", 'the "old" one" too']
    assert rows["label"][:] == ["1", "0", "1"]


def test_class_names_survive_saving(tmp_path: Path) -> None:
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
    rows = Dataset.from_list(ROWS, features=features)
    rows.save_to_disk(tmp_path / "saved")
    rows.to_parquet(tmp_path / "rows.parquet")
    for name in ("saved", "rows.parquet"):
        loaded, _ = load_split(task(data_files={"train": str(tmp_path / name)}), "train")
        assert loaded.features["label"].names == ["negative", "positive"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "saved"])
def test_columns_are_renamed_and_rows_are_chosen(tmp_path: Path, name: str) -> None:
    rows = [{"text": f"text {i}", "source": "b" if i % 3 else "a", "label": i % 2} for i in range(9)]
    WRITERS[name](tmp_path / name, rows)
    changes = {"rename": {"text": "sentence", "absent": "x"}, "keep_rows": {"source": "a", "absent": "x"}}
    loaded, _ = load_split(task(data_files={"train": str(tmp_path / name)}, **changes), "train")
    assert loaded["sentence"][:] == ["text 0", "text 3", "text 6"]


def test_a_column_that_has_the_name_already_is_not_renamed(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [{"text": "a", "sentence": "b"}])
    loaded, _ = load_split(task(data_files={"train": str(path)}, rename={"text": "sentence"}), "train")
    assert list(loaded) == [{"text": "a", "sentence": "b"}]


def test_numbers_choose_rows_as_well(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [{"text": "a", "genre": 1}, {"text": "b", "genre": 2}])
    loaded, _ = load_split(task(data_files={"train": str(path)}, keep_rows={"genre": "2"}), "train")
    assert loaded["text"][:] == ["b"]


WRONG = {"rows.xlsx": "is none of", "rows": "is none of", "rows.gz": "is none of"}


@pytest.mark.parametrize("name", WRONG)
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a", encoding="utf-8")
    with pytest.raises(UsageError, match=r"^task.data_files.train: .*is none of .csv"):
        load_split(task(data_files={"train": str(tmp_path / name)}), "train")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^task.data_files.train: .* does not exist"):
        load_split(task(data_files={"train": str(tmp_path / "absent.csv")}), "train")


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"sentence": ', encoding="utf-8")
    with pytest.raises(UsageError, match=r"^task.data_files.train: .*rows.json. cannot be read: "):
        load_split(task(data_files={"train": str(tmp_path / "rows.json")}), "train")


def test_without_hub_and_file_the_missing_key_is_named() -> None:
    with pytest.raises(UsageError, match=r"no file for the split 'validation', give \W*task.data_files.validation="):
        load_split(task(data_files={"train": "a.csv"}), "validation")


def test_what_the_refusal_proposes_can_be_said_on_the_command_line() -> None:
    with pytest.raises(UsageError) as refusal:
        load_split(task(), "train")
    proposal = str(refusal.value).partition("give ")[2].partition("=")[0]
    assert "data_files.train" in proposal
    config = validated("task=glue/sst2", f"{proposal}=mine.jsonl")
    assert config.task.data_files == {"train": "mine.jsonl"}


def test_files_are_used_instead_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "load_dataset", None)
    monkeypatch.setattr(splits, "trouble", None)
    (tmp_path / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    rows, _ = load_split(task(source="owner/name", data_files={"train": str(tmp_path / "rows.json")}), "train")
    assert list(rows) == ROWS


@pytest.mark.parametrize("answer", ["", NO_NETWORK])
def test_embedded_files_stand_in_for_a_hub_that_cannot_be_reached_for_all_splits_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []
    hub = Dataset.from_list([{"text": "from the hub"}])
    monkeypatch.setattr("policyprune.storage.hub.trouble", lambda source: asked.append(source) or answer)
    monkeypatch.setattr(splits, "trouble", lambda source: answer)
    monkeypatch.setattr(splits, "load_dataset", lambda source, subset, split: hub)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"text": "from the file"}]), encoding="utf-8")
    files = {"train": str(path), "validation": str(path)}
    config = task(source="owner/name", subset="sub", offline_files=files, rename={"text": "sentence"})
    with caplog.at_level("INFO"):
        loaded = load_splits(config)
    assert asked == ["owner/name"], "the hub is asked once, not for every split"
    expected = str(path) if answer else "owner/name/sub"
    assert [origin for _, origin in loaded.values()] == [expected, expected]
    assert [rows["sentence"][0] for rows, _ in loaded.values()] == [f"from the {'file' if answer else 'hub'}"] * 2
    assert [record.message for record in caplog.records if "task.origin" in record.message] == [
        f"task.origin={'embedded' if answer else 'hub'}: train from {expected}, validation from {expected}"
    ]


CARD = "---\nconfigs:\n- config_name: sub\n  data_files:\n  - split: train\n    path: sub/train-*\n---\n"


def test_without_a_network_the_copy_in_the_hub_cache_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    Dataset.from_list(ROWS).to_parquet(tmp_path / "sub" / "train-0.parquet")
    (tmp_path / "README.md").write_text(CARD, encoding="utf-8")
    monkeypatch.setattr(splits, "trouble", lambda source: NO_NETWORK)
    monkeypatch.setattr(splits, "snapshot", lambda source: tmp_path if source == "owner/name" else None)
    rows, origin = load_split(task(source="owner/name", subset="sub"), "train")
    assert list(rows) == ROWS
    assert origin == "owner/name/sub"


@pytest.mark.parametrize("error", [OSError("no such data set\nmore"), ValueError("no such data set"), OSError()])
def test_what_the_hub_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*arguments: Any, **named: Any) -> Dataset:
        raise error

    monkeypatch.setattr(splits, "load_dataset", refuse)
    with pytest.raises(UsageError, match=r"^task.source: 'owner/name' \(split train\) cannot be loaded: \w.*$"):
        load_split(task(source="owner/name"), "train")


def test_rows_of_the_test_split_are_left_out() -> None:
    train = Dataset.from_list([{"a": text, "b": "x"} for text in ("One, two!", "three", "FOUR", "five", "six")])
    first = Dataset.from_list([{"a": "one TWO", "b": "X."}, {"a": "three", "b": "y"}])
    second = Dataset.from_list([{"a": "f-o-u-r", "b": "x"}])
    assert without(train, [first, second], ["a", "b"])["a"][:] == ["three", "five", "six"]
    assert without(train, [first], ["a"])["a"][:] == ["FOUR", "five", "six"]
    assert len(without(train, [], ["a"])) == 5


def test_other_scripts_are_letters_too() -> None:
    texts = ["первый пример", "второй пример", "第三の例", "!!!"]
    train = Dataset.from_list([{"a": text} for text in texts])
    held_out = Dataset.from_list([{"a": "Второй пример."}, {"a": "ещё один"}])
    assert without(train, [held_out], ["a"])["a"][:] == ["первый пример", "第三の例", "!!!"]


def test_examples_are_drawn_by_the_seed() -> None:
    rows = Dataset.from_list([{"number": i} for i in range(20)])
    draws = [drawn(rows, Examples(8, seed))["number"][:] for seed in (0, 0, 1)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    assert len(set(draws[0])) == 8
    assert sorted(drawn(rows, Examples(None, 0))["number"][:]) == list(range(20))


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^task.calibration.count: 21 is more than the 20 there are"):
        drawn(Dataset.from_list([{"number": i} for i in range(20)]), Examples(21, 0))


@pytest.mark.parametrize("name", ["squad.json", "squad.json.gz"])
def test_nested_squad_files_are_flattened(tmp_path: Path, name: str) -> None:
    content = articles(3, none=True)
    text = json.dumps(content)
    if name.endswith(".gz"):
        zipped(tmp_path / name, text)
    else:
        (tmp_path / name).write_text(text, encoding="utf-8")
    rows, _ = load_split(task(data_files={"train": str(tmp_path / name)}), "train")
    assert list(rows) == flatten_squad(content["data"])
    assert len(rows) == 6
    assert [len(row["answers"]["text"]) for row in rows] == [1, 0] * 3
    for row in list(rows)[::2]:
        start, answer = row["answers"]["answer_start"][0], row["answers"]["text"][0]
        assert row["context"][start : start + len(answer)] == answer
