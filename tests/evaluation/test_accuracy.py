"""Metrics of classification against computation by hand."""

import math

import pytest
import torch
from torch import Tensor

from policyprune.evaluation.accuracy import classification_metrics, predictions, standard_error, standard_errors

LABELS = torch.tensor([1, 1, 1, 0, 0, 0, 0, 1])
CHOSEN = torch.tensor([1, 1, 0, 0, 0, 1, 0, 1])  # 3 true positives, 1 false, 1 missed, 3 true negatives


def logits_of(chosen: Tensor, classes: int = 2) -> Tensor:
    """Logits with the highest value at the chosen class."""
    return torch.nn.functional.one_hot(chosen, classes).float() * 2 - 0.5


def test_accuracy_f1_and_matthews() -> None:
    values = classification_metrics(logits_of(CHOSEN), LABELS, ["accuracy", "f1", "matthews"], None)
    precision, recall = 3 / 4, 3 / 4
    assert values["accuracy"] == pytest.approx(6 / 8)
    assert values["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert values["matthews"] == pytest.approx((3 * 3 - 1 * 1) / math.sqrt(4 * 4 * 4 * 4))
    assert set(values) == {"accuracy", "f1", "matthews", "cross_entropy"}
    assert all(type(value) is float for value in values.values())


def test_cross_entropy_is_the_mean_of_all_examples() -> None:
    right, wrong = (math.log(1 + math.exp(gap)) for gap in (-2, 2))
    values = classification_metrics(logits_of(CHOSEN), LABELS, [], None)
    assert values == {"cross_entropy": pytest.approx((6 * right + 2 * wrong) / 8, rel=1e-5)}


def test_regression() -> None:
    labels, scores = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([[1.0], [3.0], [2.0], [10.0]])
    values = classification_metrics(scores, labels, ["pearson", "spearman"], None)
    x, y = labels - labels.mean(), scores.flatten() - scores.mean()
    assert values["pearson"] == pytest.approx(float(x @ y / (x.norm() * y.norm())), rel=1e-5)
    assert values["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))  # ranks 1 3 2 4
    assert values["squared_error"] == pytest.approx((0 + 1 + 1 + 36) / 4)


def test_agreement_is_with_the_dense_model_and_not_with_the_labels() -> None:
    dense = CHOSEN.clone()
    dense[:2] = 1 - dense[:2]
    values = classification_metrics(logits_of(CHOSEN), LABELS, ["accuracy"], logits_of(dense))
    assert values["agreement"] == pytest.approx(6 / 8)
    same = classification_metrics(logits_of(CHOSEN), 1 - CHOSEN, ["accuracy"], logits_of(CHOSEN))
    assert (same["accuracy"], same["agreement"]) == (0.0, 1.0)


def test_three_classes() -> None:
    labels, chosen = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 2, 2, 2])
    values = classification_metrics(logits_of(chosen, 3), labels, ["accuracy", "matthews"], logits_of(labels, 3))
    assert values["accuracy"] == 0.75
    assert values["agreement"] == 0.75
    assert 0 < values["matthews"] < 1
    assert predictions(logits_of(chosen, 3)).tolist() == chosen.tolist()


def test_regressions_agree_with_nothing() -> None:
    scores = torch.tensor([[1.0], [2.0], [4.0]])
    values = classification_metrics(scores, torch.tensor([1.0, 2.0, 3.0]), ["pearson"], scores)
    assert "agreement" not in values


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_have_no_metrics(value: float) -> None:
    """A run goes on with null; the class with the highest logit says nothing."""
    logits = logits_of(CHOSEN)
    logits[3] = value
    names = ["accuracy", "f1", "matthews"]
    values = classification_metrics(logits, LABELS, names, logits_of(CHOSEN))
    assert values == dict.fromkeys([*names, "cross_entropy", "agreement"])
    assert classification_metrics(logits_of(CHOSEN), LABELS, ["accuracy"], logits)["agreement"] is None
    assert standard_errors(logits, LABELS, None)["cross_entropy"] is None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scores", [[1.0] * 4, [math.nan, 1, 2, 3], [math.inf, 1, 2, 3]])
def test_a_correlation_that_is_not_defined_is_none_and_says_nothing(scores: list[float]) -> None:
    labels = torch.tensor([1.0, 2.0, 3.0, 4.0])
    values = classification_metrics(torch.tensor(scores)[:, None], labels, ["pearson", "spearman"], None)
    assert (values["pearson"], values["spearman"]) == (None, None)
    assert (values["squared_error"] is None) == (scores[0] != 1)


def test_standard_errors_are_those_of_means_over_examples() -> None:
    errors = standard_errors(logits_of(CHOSEN), LABELS, logits_of(1 - CHOSEN))
    assert errors["accuracy"] == pytest.approx(math.sqrt(6 / 8 * 2 / 8 / 7))
    assert errors["agreement"] == 0
    right, wrong = (math.log(1 + math.exp(gap)) for gap in (-2, 2))
    mean = (6 * right + 2 * wrong) / 8
    variance = (6 * (right - mean) ** 2 + 2 * (wrong - mean) ** 2) / 7
    assert errors["cross_entropy"] == pytest.approx(math.sqrt(variance / 8), rel=1e-5)
    assert set(errors) == {"accuracy", "agreement", "cross_entropy"}


def test_standard_errors_without_a_dense_model_or_without_classes() -> None:
    assert set(standard_errors(logits_of(CHOSEN), LABELS, None)) == {"accuracy", "cross_entropy"}
    scores = torch.tensor([[1.0], [2.0], [4.0]])
    errors = standard_errors(scores, torch.tensor([1.0, 2.0, 3.0]), scores)
    assert errors == {"squared_error": pytest.approx(1 / 3)}


def test_one_example_has_no_standard_error() -> None:
    assert standard_error([1.0]) is None
