"""GLUE's metrics, by scikit-learn and SciPy."""

import warnings
from collections.abc import Callable, Sequence

from scipy.stats import ConstantInputWarning, pearsonr, sem, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor

from policyprune.evaluation.measure import finite
from policyprune.tasks.classification import losses

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


def classification_metrics(
    logits: Tensor, labels: Tensor, names: list[str], dense: Tensor | None
) -> dict[str, float | None]:
    """The named metrics, the mean loss, and the share of predictions that agree with the dense model's logits.

    None for what is not defined, as a correlation with a constant, and for all of them where a logit is not finite:
    the class with the highest one says nothing then.
    """
    predicted = predictions(logits)
    found: dict[str, float | None] = {name: _metric(name, labels, predicted) for name in names}
    found["cross_entropy" if logits.shape[-1] > 1 else "squared_error"] = finite(
        float(losses(logits, labels).double().mean())
    )
    if dense is not None and logits.shape[-1] > 1:
        whole = bool(dense.isfinite().all())
        found["agreement"] = float((predicted == predictions(dense)).double().mean()) if whole else None
    return found if bool(logits.isfinite().all()) else dict.fromkeys(found)


def _metric(name: str, labels: Tensor, predicted: Tensor) -> float | None:
    if not bool(predicted.isfinite().all()) or (len(labels) < 2 and name in ("pearson", "spearman")):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        return finite(float(METRICS[name](labels.tolist(), predicted.tolist())))


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
    return finite(float(sem(values))) if len(values) > 1 else None
