"""Raw outputs of a model on labelled examples, and how many of its classes are right."""

import warnings
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import torch
from scipy.stats import ConstantInputWarning, pearsonr, sem, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.evaluation.fresh_process import outputs_elsewhere
from policyprune.evaluation.measures import Measure, finite
from policyprune.progress import bar
from policyprune.tasks import by_length
from policyprune.tasks.classification import ClassificationTask, losses
from policyprune.tasks.labelled import Encoded

METRICS: dict[str, Callable[[list[float], list[float]], float]] = {
    "accuracy": accuracy_score,
    "f1": f1_score,
    "matthews": matthews_corrcoef,
    "pearson": lambda labels, predicted: pearsonr(labels, predicted).statistic,
    "spearman": lambda labels, predicted: spearmanr(labels, predicted).statistic,
}
OUTPUTS = ("logits",)


@torch.inference_mode()
def outputs(
    model: PreTrainedModel,
    examples: Encoded,
    names: tuple[str, ...],
    batch_tokens: int,
    advance: Callable[[int], object] = lambda done: None,
) -> list[tuple[Tensor, ...]]:
    """The named outputs of each example, in order, float32 on the CPU, each without its batch dimension.

    Examples of about the same length share a batch of about `batch_tokens` tokens. `advance(n)` is told how many
    examples were done.
    """
    rows_of_outputs: list[tuple[Tensor, ...]] = [()] * len(examples.lengths)
    mean = max(1, int(examples.lengths.float().mean()))
    for rows in by_length(examples.lengths, max(1, batch_tokens // mean)):
        inputs = {name: tensor.to(model.device) for name, tensor in examples.inputs(rows).items()}
        out = model(**inputs)
        columns = [getattr(out, name).float().cpu() for name in names]
        for position, row in enumerate(rows.tolist()):
            rows_of_outputs[row] = tuple(column[position] for column in columns)
        advance(len(rows))
    return rows_of_outputs


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of a mean, sqrt(p (1 - p) / (n - 1)) for n answers that are right or wrong; None for one value."""
    return finite(float(sem(values))) if len(values) > 1 else None


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
    values: dict[str, float | None] = {name: _metric(name, labels, predicted) for name in names}
    values[_loss_name(logits)] = finite(float(losses(logits, labels).double().mean()))
    if dense is not None and logits.shape[-1] > 1:
        all_finite = bool(dense.isfinite().all())
        values["agreement"] = float((predicted == predictions(dense)).double().mean()) if all_finite else None
    return values if bool(logits.isfinite().all()) else dict.fromkeys(values)


def standard_errors(logits: Tensor, labels: Tensor, dense: Tensor | None) -> dict[str, float | None]:
    """Standard errors of those metrics that are means over examples, by name."""
    predicted = predictions(logits)
    per_example = {_loss_name(logits): losses(logits, labels)}
    if logits.shape[-1] > 1:
        per_example["accuracy"] = predicted == labels
        if dense is not None:
            per_example["agreement"] = predicted == predictions(dense)
    return {name: standard_error(values.double().tolist()) for name, values in per_example.items()}


@dataclass(frozen=True)
class ClassificationQuality:
    """The task's metrics, the loss, and agreement with the dense model, for each test split.

    Of the model that is called `dense` the logits are kept, by split; without one there is no agreement.
    """

    task: ClassificationTask
    batch_tokens: int
    dense: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[str, Tensor] = field(default_factory=dict)  # of the last model's classes, by split

    def check(self) -> list[str]:
        """Nothing that the task does not say."""
        return []

    def trained_on(self, read: Set[str]) -> list[str]:
        """Nothing: there are no other texts."""
        return []

    def identity(self) -> None:
        """None: the dense model's logits are needed for the agreement."""

    def sample(self) -> "ClassificationQuality":
        """The first examples of each split."""
        return ClassificationQuality(self.task.sample(), self.batch_tokens)

    def of(self, title: str, model: PreTrainedModel) -> list[Measure]:
        """Measures on every split."""
        rows: list[Measure] = []
        for split, examples in self.task.tests.items():
            self.labels[split] = examples.labels_for(model)
            with bar(len(examples.labels), f"{title}, {split}", "example") as progress:
                logits = _together(outputs(model, examples.encoded, OUTPUTS, self.batch_tokens, progress.update))
            rows += self._rows(split, logits)
            if title == "dense":
                self.dense[split] = logits
        return rows

    def elsewhere(self, checkpoint: Path, like: PreTrainedModel, trusted: bool = False) -> list[Measure]:
        """Measures on the first split."""
        split, examples = next(iter(self.task.tests.items()))
        logits = _together(outputs_elsewhere(checkpoint, examples.encoded, OUTPUTS, like, trusted))
        return list(self._rows(split, logits))

    def _rows(self, split: str, logits: Tensor) -> Iterator[Measure]:
        labels, dense = self.labels[split], self.dense.get(split)
        metrics = classification_metrics(logits, labels, self.task.config.metrics, dense)
        errors = standard_errors(logits, labels, dense)
        protocol = {"split": split, "examples": len(logits)}
        for name, value in metrics.items():
            chance = {"chance": _commonest(labels)} if name == "accuracy" else {}
            yield Measure(name, value, "", {**protocol, **chance}, errors.get(name))


def _together(logits_of_each: list[tuple[Tensor, ...]]) -> Tensor:
    return torch.stack([row[0] for row in logits_of_each])


def _metric(name: str, labels: Tensor, predicted: Tensor) -> float | None:
    if not bool(predicted.isfinite().all()) or (len(labels) < 2 and name in ("pearson", "spearman")):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        return finite(float(METRICS[name](labels.tolist(), predicted.tolist())))


def _loss_name(logits: Tensor) -> str:
    return "cross_entropy" if logits.shape[-1] > 1 else "squared_error"


def _commonest(labels: Tensor) -> float:
    """The share of the most frequent class, which a model reaches that has learnt nothing."""
    return float(labels.unique(return_counts=True)[1].max()) / len(labels)
