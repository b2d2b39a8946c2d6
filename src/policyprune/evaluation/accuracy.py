"""GLUE's metrics, by scikit-learn and SciPy."""

from collections.abc import Callable, Sequence

import torch
from scipy.stats import pearsonr, sem, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor

from policyprune.tasks.glue import losses

METRICS: dict[str, Callable[[list[float], list[float]], float]] = {
    "accuracy": accuracy_score,
    "f1": f1_score,
    "matthews": matthews_corrcoef,
    "pearson": lambda labels, predicted: pearsonr(labels, predicted).statistic,
    "spearman": lambda labels, predicted: spearmanr(labels, predicted).statistic,
}


def predictions(logits: Tensor) -> Tensor:
    """Class numbers (N,), or scores where there is one class, from logits (N, classes)."""
    return logits.squeeze(-1) if logits.shape[-1] == 1 else logits.argmax(-1)


def classification_metrics(logits: Tensor, labels: Tensor, names: list[str], dense: Tensor | None) -> dict[str, float]:
    """The named metrics, the mean loss, and the share of predictions that agree with the dense model's logits."""
    predicted = predictions(logits)
    found = {name: float(METRICS[name](labels.tolist(), predicted.tolist())) for name in names}
    found["cross_entropy" if logits.shape[-1] > 1 else "squared_error"] = float(losses(logits, labels).double().mean())
    if dense is not None and logits.shape[-1] > 1:
        found["agreement"] = float((predicted == predictions(dense)).double().mean())
    if not all(torch.isfinite(torch.tensor(value)) for value in found.values()):
        raise FloatingPointError("a metric of the test split is not a number")
    return found


def standard_errors(logits: Tensor, labels: Tensor, dense: Tensor | None) -> dict[str, float | None]:
    """Standard errors of those metrics that are means over examples, by name."""
    predicted = predictions(logits)
    several = logits.shape[-1] > 1
    each = {"cross_entropy" if several else "squared_error": losses(logits, labels)}
    if several:
        each["accuracy"] = predicted == labels
        if dense is not None:
            each["agreement"] = predicted == predictions(dense)
    return {name: standard_error(values.double().tolist()) for name, values in each.items()}


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of a mean, sqrt(p (1 - p) / (n - 1)) for n answers that are right or wrong; None for one value."""
    return float(sem(values)) if len(values) > 1 else None
