"""How good a model is at its task, whichever task that is."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.config.schema import Evaluation
from policyprune.evaluation.accuracy import classification_metrics, standard_error, standard_errors
from policyprune.evaluation.answers import answers, exact_and_f1
from policyprune.evaluation.fresh_process import outputs_elsewhere, perplexity_elsewhere
from policyprune.evaluation.measure import Measure, finite
from policyprune.evaluation.outputs import outputs
from policyprune.evaluation.perplexity import of_losses, window_losses
from policyprune.evaluation.zero_shot import ZeroShot
from policyprune.progress import bar
from policyprune.tasks import Task
from policyprune.tasks.classification import ClassificationTask
from policyprune.tasks.language_modeling import TextTask
from policyprune.tasks.question_answering import QuestionAnsweringTask


class Quality(Protocol):
    """Measures models on the test data of one task; the dense model first."""

    def identity(self) -> dict[str, Any] | None:
        """Test data and settings that decide on the measures of a model; None where more than numbers is kept of it."""

    def sample(self) -> "Quality":
        """The same on the first few examples, to see whether it can be measured at all."""

    def of(self, title: str, model: PreTrainedModel) -> list[Measure]:
        """Measures of a model in memory."""

    def elsewhere(self, checkpoint: Path, like: PreTrainedModel, trusted: bool = False) -> list[Measure]:
        """Measures of a checkpoint that another process loads without policyprune, on the device of `like`.

        `trusted`: leave to run code of the checkpoint that is not ours.
        """


def quality_of(task: Task, config: Evaluation, tokenizer: PreTrainedTokenizerBase) -> Quality:
    """What measures this task; UsageError for questions that cannot be had."""
    if isinstance(task, ClassificationTask):
        return Classifying(task, config)
    if isinstance(task, QuestionAnsweringTask):
        return Answering(task, config)
    assert isinstance(task, TextTask)
    windows = {length: task.windows(length, config.max_tokens) for length in config.lengths}
    asked = ZeroShot(config.zero_shot, tokenizer, task.bos is not None) if config.zero_shot.tasks else None
    return Predicting(windows, config, asked)


def _commonest(labels: Tensor) -> float:
    """The share of the most frequent class, which a model reaches that has learnt nothing."""
    return float(labels.unique(return_counts=True)[1].max()) / len(labels)


def _digest(ids: Tensor) -> str:
    return hashlib.sha256(ids.numpy().tobytes()).hexdigest()


@dataclass
class Predicting:
    """Perplexity over windows of each length, and answers to questions."""

    windows: dict[int, Tensor]
    config: Evaluation
    zero_shot: ZeroShot | None

    def identity(self) -> dict[str, Any]:
        """The windows, and what is asked of whom."""
        return {
            "windows": {length: _digest(ids) for length, ids in self.windows.items()},
            "batch_tokens": self.config.batch_tokens,
            "zero_shot": self.zero_shot.identity() if self.zero_shot else None,
        }

    def sample(self) -> "Predicting":
        """A window of each length, a question of each task."""
        windows = {length: ids[:1] for length, ids in self.windows.items()}
        return replace(self, windows=windows, zero_shot=self.zero_shot and self.zero_shot.sample())

    def of(self, title: str, model: PreTrainedModel) -> list[Measure]:
        """A perplexity for each window length, then the accuracy on each task."""
        rows: list[Measure] = []
        for length, ids in self.windows.items():
            with bar(len(ids), f"{title}, {length} tokens", "window") as progress:
                value, error = of_losses(window_losses(model, ids, self.config.batch_tokens, progress.update))
            rows.append(Measure("perplexity", finite(value), "", self._protocol(length, model), error))
        return rows + (self.zero_shot.of(model, f"{title}, zero-shot") if self.zero_shot else [])

    def elsewhere(self, checkpoint: Path, like: PreTrainedModel, trusted: bool = False) -> list[Measure]:
        """The perplexities in a fresh process, with an independent computation."""
        values = perplexity_elsewhere(checkpoint, self.windows, like, self.config.batch_tokens, trusted)
        return [Measure("perplexity", value, "", self._protocol(length, like)) for length, value in values.items()]

    def _protocol(self, length: int, model: PreTrainedModel) -> dict[str, int | str]:
        dtype = str(model.dtype).removeprefix("torch.")
        return {"length": length, "windows": len(self.windows[length]), "dtype": dtype}


@dataclass
class Classifying:
    """The task's metrics, the loss, and agreement with the dense model, for each test split."""

    task: ClassificationTask
    config: Evaluation
    dense: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[str, Tensor] = field(default_factory=dict)

    def identity(self) -> None:
        """The dense model's outputs are needed for the agreement."""

    def sample(self) -> "Classifying":
        """The first examples of each split."""
        return Classifying(self.task.sample(), self.config)

    def of(self, title: str, model: PreTrainedModel) -> list[Measure]:
        """Measures on every split."""
        rows: list[Measure] = []
        for split, examples in self.task.tests.items():
            self.labels[split] = examples.labels_for(model)
            with bar(len(examples.labels), f"{title}, {split}", "example") as progress:
                found = outputs(model, examples.encoded, ("logits",), self.config.batch_tokens, progress.update)
            rows += self._rows(split, found)
        return rows

    def elsewhere(self, checkpoint: Path, like: PreTrainedModel, trusted: bool = False) -> list[Measure]:
        """Measures on the first split."""
        split, examples = next(iter(self.task.tests.items()))
        return list(self._rows(split, outputs_elsewhere(checkpoint, examples.encoded, ("logits",), like, trusted)))

    def _rows(self, split: str, found: list[tuple[Tensor, ...]]) -> Iterator[Measure]:
        logits = torch.stack([row[0] for row in found])
        labels, dense = self.labels[split], self.dense.get(split)
        metrics = classification_metrics(logits, labels, self.task.config.metrics, dense)
        errors = standard_errors(logits, labels, dense)
        self.dense.setdefault(split, logits)
        protocol = {"split": split, "examples": len(found)}
        for name, value in metrics.items():
            own = {**protocol, "chance": _commonest(labels)} if name == "accuracy" else protocol
            yield Measure(name, value, "", own, errors.get(name))


@dataclass
class Answering:
    """Exact match and F1, for each test split."""

    task: QuestionAnsweringTask
    config: Evaluation

    def identity(self) -> dict[str, Any]:
        """The windows of all questions, and how answers are taken from them."""
        tests = self.task.tests.items()
        return {
            "windows": {split: _digest(own.windows.encoded.tensors["input_ids"]) for split, own in tests},
            "questions": {split: hashlib.sha256(repr(own.rows).encode()).hexdigest() for split, own in tests},
            "task": asdict(self.task.config),
            "batch_tokens": self.config.batch_tokens,
        }

    def sample(self) -> "Answering":
        """The first question of each split."""
        return replace(self, task=self.task.sample())

    def of(self, title: str, model: PreTrainedModel) -> list[Measure]:
        """Measures on every split."""
        rows: list[Measure] = []
        for split, questions in self.task.tests.items():
            encoded = questions.windows.encoded
            with bar(len(encoded.lengths), f"{title}, {split}", "window") as progress:
                names = ("start_logits", "end_logits")
                found = outputs(model, encoded, names, self.config.batch_tokens, progress.update)
            rows += self._rows(split, found)
        return rows

    def elsewhere(self, checkpoint: Path, like: PreTrainedModel, trusted: bool = False) -> list[Measure]:
        """Measures on the first split."""
        split, questions = next(iter(self.task.tests.items()))
        names = ("start_logits", "end_logits")
        return self._rows(split, outputs_elsewhere(checkpoint, questions.windows.encoded, names, like, trusted))

    def _rows(self, split: str, found: list[tuple[Tensor, ...]]) -> list[Measure]:
        questions = self.task.tests[split]
        texts = answers(questions, [row[0] for row in found], [row[1] for row in found], self.task.config)
        protocol = {"split": split, "questions": len(questions.rows)}
        if texts is None:
            return [Measure(name, None, "", protocol) for name in ("exact_match", "f1")]
        scores = [exact_and_f1(text, row["answers"]["text"]) for text, row in zip(texts, questions.rows, strict=True)]
        columns = dict(zip(("exact_match", "f1"), zip(*scores, strict=True), strict=True))
        return [
            Measure(name, sum(values) / len(scores), "", protocol, standard_error(values))
            for name, values in columns.items()
        ]
