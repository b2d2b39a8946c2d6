"""Labels: one number whatever they were written as, in the order of the model's classes; what is none is refused."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoModelForSequenceClassification, RobertaConfig

from encoders import encoder_tokenizer, make_encoder, write_lines
from harness import validated
from policyprune.config.schema import Classification, Examples
from policyprune.errors import UsageError
from policyprune.evaluation.accuracy import ClassificationQuality
from policyprune.models.sequences import longest_sequence
from policyprune.tasks import build, check_model
from policyprune.tasks.classification import ClassificationTask
from policyprune.tasks.labels import ClassNames, aligned, check_names, labels_of, name_classes, names_of

MNLI = ["entailment", "neutral", "contradiction"]
OTHER = ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]


def config(classes: int = 2, names: tuple[str, ...] = ()) -> Classification:
    return Classification(
        name="mine",
        source=None,
        subset=None,
        data_files={},
        origin="auto",
        offline_files={},
        rename={},
        keep_rows={},
        calibration_split="train",
        test_splits=["validation"],
        max_length=64,
        calibration=Examples(None, 0),
        text_columns=["premise", "hypothesis"],
        label_column="label",
        classes=classes,
        label_names=list(names),
        metrics=["accuracy"] if classes > 1 else ["pearson"],
    )


def read(values: list[Any], classes: int = 2, names: tuple[str, ...] = ()) -> list[float]:
    rows = Dataset.from_dict({"label": values})
    wanted = config(classes, names)
    return labels_of(rows, "validation", wanted, names_of({"validation": rows}, wanted)).tolist()


def model_with(names: list[str]) -> Any:
    model = make_encoder(num_labels=len(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    return model


def saved(kind: str, folder: Path, rows: list[dict[str, Any]]) -> str:
    """The rows with their labels as GLUE's integers or names."""
    if kind == "ClassLabel":
        text = Value("string")
        features = Features({"premise": text, "hypothesis": text, "label": ClassLabel(names=MNLI)})
        Dataset.from_list(rows, features=features).save_to_disk(folder)
        return str(folder)
    if kind == "ClassLabel in another order":
        text, names = Value("string"), [name.lower() for name in OTHER]
        features = Features({"premise": text, "hypothesis": text, "label": ClassLabel(names=names)})
        turned = [{**row, "label": 2 - row["label"]} for row in rows]
        Dataset.from_list(turned, features=features).save_to_disk(folder)
        return str(folder)
    if kind == "integers":
        return str(write_lines(folder.with_suffix(".jsonl"), rows))
    words = [{**row, "label": MNLI[row["label"]].upper()} for row in rows]
    if kind == "words":
        return str(write_lines(folder.with_suffix(".jsonl"), words))
    path = folder.with_suffix(".tsv")
    path.write_text("\n".join(["\t".join(words[0]), *("\t".join(row.values()) for row in words)]), encoding="utf-8")
    return str(path)


KINDS = ("ClassLabel", "ClassLabel in another order", "integers", "words", "GLUE's own file")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_names", [OTHER, MNLI, ["LABEL_0", "LABEL_1", "LABEL_2"]])
def test_every_way_to_write_labels_gives_the_same_number(
    tmp_path: Path, tiny_tokenizer: Any, kind: str, model_names: list[str]
) -> None:
    """On 946e1c6 the same rows gave 1.00 with ClassLabel and 0.33 as JSON lines."""
    rows = [{"premise": f"a dog {i}", "hypothesis": f"a fox {i}", "label": i % 3} for i in range(12)]
    files = {name: saved(kind, tmp_path / name, rows[at:]) for name, at in (("train", 3), ("validation", 0))}
    files["train"] = saved(kind, tmp_path / "t", [{**row, "premise": "other " + row["premise"]} for row in rows])
    stated = validated("model=bert_base", "task=glue/mnli", "evaluation.fresh_process=false").task
    assert isinstance(stated, Classification)
    changes = {"data_files": files, "test_splits": ["validation"], "calibration": Examples(None, 0)}
    task = build(replace(stated, **changes), encoder_tokenizer(tiny_tokenizer))
    assert isinstance(task, ClassificationTask)
    model = model_with(model_names)
    assert task.check(model) == []
    expected = {name.casefold(): index for index, name in enumerate(model_names)}
    number = [expected.get(MNLI[row["label"]], row["label"]) for row in rows]
    quality = ClassificationQuality(task, batch_tokens=512)
    for title in ("pruned", "recovered", "dense"):  # agreement is with the dense model or there is none
        assert "agreement" not in {measure.metric for measure in quality.of(title, model)}
    assert quality.labels["validation"].tolist() == number
    perfect = torch.nn.functional.one_hot(torch.tensor(number), 3).float()
    measures = {measure.metric: measure for measure in quality._rows("validation", perfect)}
    assert measures["accuracy"].value == 1.0
    assert "agreement" in measures
    assert measures["accuracy"].protocol["chance"] == pytest.approx(1 / 3)


def test_every_glue_task_names_its_classes_in_the_order_of_glue() -> None:
    names = {
        name: validated("model=bert_base", f"task=glue/{name}", "evaluation.fresh_process=false").task.label_names
        for name in ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")
    }
    assert names == {
        "cola": ["unacceptable", "acceptable"],
        "mnli": MNLI,
        "mrpc": ["not_equivalent", "equivalent"],
        "qnli": ["entailment", "not_entailment"],
        "qqp": ["not_duplicate", "duplicate"],
        "rte": ["entailment", "not_entailment"],
        "sst2": ["negative", "positive"],
        "stsb": [],
    }


def test_spellings_of_a_name_are_one_name() -> None:
    names = ("entailment", "not_entailment")
    assert read(["Entailment", "not entailment", "NOT-ENTAILMENT", " not_entailment "], names=names) == [0, 1, 1, 1]
    model = model_with(["Not Entailment", "ENTAILMENT"])
    assert aligned(torch.tensor([0, 1]), ClassNames(list(names)), model).tolist() == [1, 0]


def test_numbers_are_read_from_text_and_scores_too() -> None:
    assert read(["0", "1", " 1 "]) == [0, 1, 1]
    assert read([True, False]) == [1, 0]
    assert read(["0.5", "3", " 4.25 "], classes=1) == [0.5, 3.0, 4.25]


WRONG: dict[str, tuple[list[Any], int, str]] = {
    "hidden": ([-1, -1, -1], 2, r"3 of 3 labels of validation are not 0 to 1; -1 stands for .*-1 in row 1\)$"),
    "hidden text": (["-1", "-1"], 2, r"2 of 2 .*-1 stands for"),
    "one hidden": ([0, 1, -1], 2, r"1 of 3 .*-1 in row 3\)$"),
    "from one": ([1, 2, 2], 2, r"2 of 3 .*; count the classes from 0 \(the first is 2 in row 2\)$"),
    "too many": ([0, 1, 2, 3], 3, r"1 of 4 .*not 0 to 2 \(the first is 3 in row 4\)$"),
    "fractions": ([0.0, 1.0, 0.5], 2, r"1 of 3 .*0\.5 in row 3\)$"),
    "not a number": ([math.nan, 1.0], 2, r"1 of 2 "),
    "null": ([0, None, 1], 2, r"1 of 3 .*None in row 2\)$"),
    "empty cell": (["0", "", "1"], 2, r"1 of 3 .*'' in row 2\)$"),
    "words for scores": (
        ["1.5", "high"],
        1,
        r"1 of 2 labels of validation are no numbers \(the first is 'high' in row 2",
    ),
    "null score": ([1.5, None], 1, r"1 of 2 .*None in row 2"),
    "nan score": ([1.5, math.nan], 1, r"1 of 2 .*nan in row 2"),
    "infinite score": ([1.5, math.inf], 1, r"1 of 2 .*inf in row 2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_label_is_refused_with_row_value_and_count(name: str) -> None:
    values, classes, words = WRONG[name]
    with pytest.raises(UsageError, match=rf"^task\.label_column: {words}"):
        read(values, classes)


def test_more_words_than_classes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^task\.classes: 2, but the labels are 3 words: a, b, c"):
        read(["a", "b", "c"])
    with pytest.raises(UsageError, match=r"^task\.label_column: 1 of 2 labels .* or negative, positive .*'-' in row 2"):
        read(["positive", "-"], names=("negative", "positive"))
    with pytest.raises(UsageError, match=r"^task\.label_names: 3 names for task\.classes=2"):
        read([0, 1], names=("a", "b", "c"))


def test_class_names_of_the_data_and_of_the_task_must_be_the_same() -> None:
    rows = Dataset.from_dict({"label": [0, 1]}, features=Features({"label": ClassLabel(names=["good", "bad"])}))
    with pytest.raises(UsageError, match=r"^task\.label_names: negative, positive, but validation names .* good"):
        names_of({"validation": rows}, config(names=("negative", "positive")))
    assert names_of({"validation": rows}, config()) == ClassNames(["good", "bad"])
    counted = Features({"label": ClassLabel(names=["0", "1"])})
    assert names_of({"v": Dataset.from_dict({"label": [0, 1]}, features=counted)}, config()) is None


def test_names_that_do_not_match_the_model_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^task\.label_names: the data name .* yes, no, the model good, bad;"):
        check_names(ClassNames(["yes", "no"]), model_with(["good", "bad"]))
    check_names(ClassNames(["no", "yes"]), model_with(["YES", "NO"]))
    check_names(ClassNames(["yes", "no"]), model_with(["LABEL_0", "LABEL_1"]))
    check_names(None, model_with(["good", "bad"]))


def test_words_without_an_order_need_the_names_of_the_model() -> None:
    names = names_of({"v": Dataset.from_dict({"label": ["good", "bad"]})}, config())
    assert names == ClassNames(["bad", "good"], ordered=False)
    with pytest.raises(UsageError, match=r"^task\.label_names: the labels are words \(bad, good\), .*\[bad,good\]$"):
        check_names(names, model_with(["LABEL_0", "LABEL_1"]))
    check_names(names, model_with(["good", "bad"]))
    check_names(ClassNames(["good"], ordered=False), model_with(["good", "bad"]))
    assert aligned(torch.tensor([0, 1]), names, model_with(["good", "bad"])).tolist() == [1, 0]


@pytest.mark.parametrize(("classes", "head"), [(2, 3), (2, 1), (3, 2), (1, 2)])
def test_a_head_of_other_classes_is_refused(classes: int, head: int) -> None:
    with pytest.raises(UsageError, match=rf"^task\.classes: {classes} .*the model's head has {head};"):
        check_model(config(classes), make_encoder(num_labels=head))


def test_examples_longer_than_the_model_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^task\.max_length: 129 is more than the 128 positions"):
        check_model(replace(config(), max_length=129), make_encoder(num_labels=2))
    check_model(replace(config(), max_length=128), make_encoder(num_labels=2))


def test_positions_of_roberta_begin_behind_the_padding() -> None:
    """514 in its config are 512 tokens: a 513th crashed in the embedding."""
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    roberta = RobertaConfig(**sizes, num_hidden_layers=1, max_position_embeddings=34, pad_token_id=1, num_labels=2)
    model = AutoModelForSequenceClassification.from_config(roberta).eval()
    assert longest_sequence(model.config) == 32
    model(torch.full((1, 32), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 33), 5))
    with pytest.raises(UsageError, match=r"^task\.max_length: 33 is more than the 32 positions"):
        check_model(replace(config(), max_length=33), model)


def test_a_head_that_is_to_be_trained_gets_the_names_of_the_data_but_keeps_its_order() -> None:
    model = model_with(["positive", "NEGATIVE"])
    name_classes(model, ClassNames(["negative", "positive"]), config())
    assert model.config.label2id == {"positive": 0, "NEGATIVE": 1}
    name_classes(model, ClassNames(["bad", "good"]), config())
    assert model.config.label2id == {"bad": 0, "good": 1}
    assert model.config.id2label == {0: "bad", 1: "good"}
    with pytest.raises(UsageError, match=r"^task\.classes: 2, but the labels are only good"):
        name_classes(model, ClassNames(["good"], ordered=False), config())


def test_class_names_that_are_numbers_are_the_classes(tmp_path: Path) -> None:
    """`class_encode_column` sorts numbers as strings: "10" comes before "2"."""
    rows = Dataset.from_dict({"label": list(range(12))}).class_encode_column("label")
    wanted = config(12)
    labels = labels_of(rows, "validation", wanted, names_of({"validation": rows}, wanted))
    assert rows.features["label"].names[2] == "10"
    assert labels.tolist() == list(range(12))


def test_a_models_classes_are_those_of_id2label() -> None:
    model = make_encoder(num_labels=2)
    model.config.id2label, model.config.label2id = {0: "positive", 1: "negative"}, {"LABEL_0": 0, "LABEL_1": 1}
    names = ClassNames(["negative", "positive"])
    check_names(names, model)
    assert aligned(torch.tensor([0, 1]), names, model).tolist() == [1, 0]
    model.config.label2id = {"negative": 0, "positive": 1}
    with pytest.raises(UsageError, match=r"^model\.source: id2label of its config\.json has .*positive, negative"):
        check_names(names, model)


def test_splits_that_name_their_classes_differently_are_refused() -> None:
    splits = {
        split: Dataset.from_dict({"label": [0, 1]}, features=Features({"label": ClassLabel(names=names)}))
        for split, names in {"calibration": ["aa", "bb"], "validation": ["good", "bad"]}.items()
    }
    with pytest.raises(UsageError, match=r"^task\.label_names: validation names its classes good, bad, calibration aa"):
        names_of(splits, config())


def test_two_classes_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^task\.label_names: a, A names two classes alike"):
        read([0, 1], names=("a", "A"))


def test_whole_numbers_written_as_fractions_are_classes() -> None:
    assert read([0.0, 1.0, 1.0]) == [0, 1, 1]
    with pytest.raises(UsageError, match=r"the first is 0\.5"):
        read([0.0, 0.5])
