"""Sentence classification from files written here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from torch.nn import functional

from encoders import encoder_tokenizer, make_encoder, reviews, write_lines
from policyprune.config.schema import Classification, Examples
from policyprune.errors import UsageError
from policyprune.tasks import build
from policyprune.tasks.classification import ClassificationTask, losses
from policyprune.tasks.labelled import Encoded
from policyprune.tasks.labels import ClassNames

TRAIN, TEST = reviews(30, seed=1), reviews(12, seed=2)
Make = Callable[..., ClassificationTask]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def config(**changes: Any) -> Classification:
    values: dict[str, Any] = {
        "name": "mine",
        "max_length": 64,
        "calibration": Examples(20, 0),
        "text_columns": ["sentence"],
    }
    return Classification(**(values | changes))


@pytest.fixture
def make(tmp_path: Path, tiny_tokenizer: Any) -> Make:
    """Builds the task from rows."""

    def made(train: Any = TRAIN, test: Any = TEST, tokenizer: Any = None, **changes: Any) -> ClassificationTask:
        files = {}
        for name, rows in {"train": train, "validation": test}.items():
            if isinstance(rows, Dataset):
                rows.save_to_disk(tmp_path / name)
                files[name] = str(tmp_path / name)
            else:
                files[name] = str(write_lines(tmp_path / f"{name}.jsonl", rows))
        task = build(config(data_files=files, **changes), tokenizer or encoder_tokenizer(tiny_tokenizer))
        assert isinstance(task, ClassificationTask)
        return task

    return made


def texts(encoded: Encoded, tokenizer: Any) -> list[str]:
    return [
        tokenizer.decode(encoded.tensors["input_ids"][row, : encoded.lengths[row]], skip_special_tokens=True)
        for row in range(len(encoded.lengths))
    ]


def test_examples_and_labels_are_those_of_the_files(make: Make, tiny_tokenizer: Any) -> None:
    task = make()
    test = task.tests["validation"]
    assert texts(test.encoded, tiny_tokenizer) == [row["sentence"] for row in TEST]
    assert test.labels.tolist() == [row["label"] for row in TEST]
    labels = {row["sentence"]: row["label"] for row in TRAIN}
    sentences = texts(task.calibration.encoded, tiny_tokenizer)
    assert len(set(sentences)) == 20
    assert task.calibration.labels.tolist() == [labels[text] for text in sentences]
    assert task.protocol["calibration"]["count"] == 20
    assert task.protocol["tests"]["validation"]["examples"] == 12
    assert task.lengths.tolist() == [len(ids) for ids in encoder_tokenizer(tiny_tokenizer)(sentences)["input_ids"]]


def test_a_calibration_example_is_never_a_test_example(make: Make, tiny_tokenizer: Any) -> None:
    copied = [{**row, "sentence": row["sentence"].upper() + " !"} for row in TRAIN[:10]]
    task = make(test=[*TEST, *copied])
    sentences = texts(task.calibration.encoded, tiny_tokenizer)
    assert set(sentences) == {row["sentence"] for row in TRAIN[10:]}
    with pytest.raises(UsageError, match="21 is more than the 20 there are"):
        make(test=[*TEST, *copied], calibration=Examples(21, 0))


def test_examples_are_drawn_by_the_seed_and_all_where_no_count_is_given(make: Make) -> None:
    ids = [make(calibration=Examples(20, seed)).calibration.encoded.tensors["input_ids"] for seed in (0, 0, 1)]
    assert torch.equal(ids[0], ids[1])
    assert ids[0].shape != ids[2].shape or not torch.equal(ids[0], ids[2])
    assert len(make(calibration=Examples(None, 0)).lengths) == 30


def test_inputs_are_as_wide_as_the_longest_of_them(make: Make) -> None:
    task = make()
    order = task.lengths.argsort()
    assert task.lengths[order[0]] < task.lengths[order[-1]]
    for rows in (order[:4], order[-4:], order[3:5], order[:1]):
        inputs = task.inputs(rows)
        longest = int(task.lengths[rows].max())
        assert {tensor.shape for tensor in inputs.values()} == {(len(rows), longest)}
        assert inputs["attention_mask"].sum(1).tolist() == task.lengths[rows].tolist()
        for row, ids in zip(rows.tolist(), inputs["input_ids"], strict=True):
            assert ids[task.lengths[row] :].eq(2).all()  # the padding token
            assert not ids[: task.lengths[row]].eq(2).any()


def test_long_sentences_are_cut(make: Make) -> None:
    task = make(max_length=9)
    assert int(task.lengths.max()) == 9
    assert task.protocol["max_length"] == 9


def test_pairs_of_sentences(make: Make, tiny_tokenizer: Any) -> None:
    train = [{"premise": f"the dog number {i}", "hypothesis": f"a fox and {i}", "label": i % 3} for i in range(12)]
    test = [{"premise": "the dog number 4", "hypothesis": "a fox and 4", "label": 1}]
    task = make(train, test, text_columns=["premise", "hypothesis"], classes=3, calibration=Examples(None, 0))
    assert len(task.lengths) == 11
    encoded = task.tests["validation"].encoded
    ids, types = (encoded.tensors[name][0] for name in ("input_ids", "token_type_ids"))
    parts = [tiny_tokenizer.decode(ids[types == kind], skip_special_tokens=True) for kind in (0, 1)]
    assert parts == ["the dog number 4", "a fox and 4"]
    expected = encoder_tokenizer(tiny_tokenizer)("the dog number 4", "a fox and 4")
    assert ids.tolist() == expected["input_ids"]
    assert set(task.calibration.labels.tolist()) == {0, 1, 2}


def test_regression_has_scores_and_squared_errors(make: Make) -> None:
    train = [{"sentence": row["sentence"], "label": 0.25 * i} for i, row in enumerate(TRAIN)]
    task = make(train, train[:3], classes=1, metrics=["pearson"])
    assert task.calibration.labels.dtype == torch.float
    assert task.tests["validation"].labels.tolist() == [0.0, 0.25, 0.5]
    model = make_encoder(num_labels=1, vocab_size=300)
    rows = torch.arange(5)
    expected = (model(**task.inputs(rows)).logits.flatten() - task.calibration.labels[rows]) ** 2
    torch.testing.assert_close(task.loss(model, rows), expected)


def test_loss_of_an_example_does_not_depend_on_its_batch(make: Make) -> None:
    task, model = make(), make_encoder(num_labels=2)
    rows = torch.tensor([3, 0, 11, 7])
    loss_of_each = task.loss(model, rows)
    assert (loss_of_each.shape, loss_of_each.dtype) == ((4,), torch.float32)
    for row, value in zip(rows.tolist(), loss_of_each.tolist(), strict=True):
        logits = model(**task.inputs(torch.tensor([row]))).logits[0]
        expected = -float(logits.log_softmax(-1)[task.calibration.labels[row]])
        assert value == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_half_precision_logits_have_full_precision_losses() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    in_float32 = losses(logits.bfloat16(), labels)
    assert in_float32.dtype == torch.float32
    expected = functional.cross_entropy(logits.bfloat16().float(), labels, reduction="none")
    torch.testing.assert_close(in_float32, expected)


def test_the_loss_uses_the_labels_of_the_model(make: Make) -> None:
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    task = make(Dataset.from_list(TRAIN, features=features), Dataset.from_list(TEST, features=features))
    assert task.calibration.names == ClassNames(["bad", "good"])
    model, rows = make_encoder(num_labels=2), torch.arange(6)
    plain = task.loss(model, rows)
    model.config.label2id = {"good": 0, "bad": 1}
    logits = model(**task.inputs(rows)).logits
    expected = functional.cross_entropy(logits, 1 - task.calibration.labels[rows], reduction="none")
    torch.testing.assert_close(task.loss(model, rows), expected)
    assert not torch.allclose(plain, expected)


@pytest.mark.parametrize("changes", [{"text_columns": ["text"]}, {"label_column": "gold"}])
def test_a_missing_column_is_named_with_those_there_are(make: Make, changes: dict[str, Any]) -> None:
    missing = changes.get("text_columns", [changes.get("label_column")])[0]
    with pytest.raises(UsageError, match=rf"^task.*calibration has no '{missing}', only sentence, label"):
        make(**changes)


def test_a_column_missing_in_the_test_split_names_the_split(make: Make) -> None:
    with pytest.raises(UsageError, match=r"validation has no 'label', only sentence$"):
        make(test=[{"sentence": row["sentence"]} for row in TEST])


def test_several_test_splits(tmp_path: Path, tiny_tokenizer: Any) -> None:
    files = {
        "train": write_lines(tmp_path / "train.jsonl", TRAIN),
        "matched": write_lines(tmp_path / "matched.jsonl", TEST[:5]),
        "mismatched": write_lines(tmp_path / "mismatched.jsonl", [*TEST[5:], TRAIN[0]]),
    }
    names = {"data_files": {k: str(v) for k, v in files.items()}, "test_splits": ["matched", "mismatched"]}
    task = build(config(**names, calibration=Examples(None, 0)), encoder_tokenizer(tiny_tokenizer))
    assert isinstance(task, ClassificationTask)
    assert {split: len(test.labels) for split, test in task.tests.items()} == {"matched": 5, "mismatched": 8}
    assert len(task.lengths) == 29


def test_offline_files_serve_where_the_hub_is_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any
) -> None:
    monkeypatch.setattr("policyprune.storage.hub.trouble", lambda source: "no network")
    files = {
        "train": str(write_lines(tmp_path / "a.jsonl", TRAIN)),
        "validation": str(write_lines(tmp_path / "b.jsonl", TEST)),
    }
    task = build(config(source="owner/name", offline_files=files), encoder_tokenizer(tiny_tokenizer))
    assert task.protocol["calibration"]["source"] == files["train"]
    assert task.protocol["tests"]["validation"]["source"] == files["validation"]


def test_words_and_numbers_together_are_refused_with_the_key(make: Make) -> None:
    with pytest.raises(UsageError, match=r"^task\.label_column: 12 of 12 labels of validation are not bad, good "):
        make(train=[{**row, "label": "good" if row["label"] else "bad"} for row in TRAIN])


@pytest.mark.parametrize("value", [None, 3, ["a"]])
def test_cells_that_are_no_text_are_refused(make: Make, value: Any) -> None:
    rows = [*TEST[:2], {"sentence": value, "label": 0}]
    rows = [{**row, "sentence": value} for row in TEST[:3]] if value is not None else rows
    with pytest.raises(UsageError, match=r"^task\.data_files: \d of 3 cells of 'sentence' in validation are no text"):
        make(test=rows)
