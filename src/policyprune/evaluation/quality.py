"""How good a model is at its task, whichever task that is."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.config.schema import Evaluation
from policyprune.evaluation.accuracy import classification_metrics
from policyprune.evaluation.answers import answers, exact_and_f1
from policyprune.evaluation.fresh_process import outputs_elsewhere, perplexity_elsewhere
from policyprune.evaluation.outputs import outputs
from policyprune.evaluation.perplexity import perplexity
from policyprune.progress import bar
from policyprune.tasks import Task
from policyprune.tasks.glue import ClassificationTask, aligned
from policyprune.tasks.language_modeling import TextTask
from policyprune.tasks.squad import QuestionAnsweringTask

Measure = tuple[str, float | int, str, dict[str, Any]]  # metric, value, unit, protocol


class Quality(Protocol):
    """Measures models on the test data of one task; the dense model first."""

    def of(self, title: str, model: PreTrainedModel) -> list[Measure]:
        """Measures of a model in memory."""

    def elsewhere(self, checkpoint: Path, like: PreTrainedModel) -> list[Measure]:
        """Measures of a checkpoint that another process loads without policyprune, on the device of `like`."""


def quality_of(task: Task, config: Evaluation) -> Quality:
    """What measures this task."""
    if isinstance(task, ClassificationTask):
        return Classifying(task, config)
    if isinstance(task, QuestionAnsweringTask):
        return Answering(task, config)
    assert isinstance(task, TextTask)
    return Predicting({length: task.windows(length, config.max_tokens) for length in config.lengths}, config)


@dataclass
class Predicting:
    """Perplexity over windows of each length."""

    windows: dict[int, Tensor]
    config: Evaluation

    def of(self, title: str, model: PreTrainedModel) -> list[Measure]:
        """A perplexity for each window length."""
        rows: list[Measure] = []
        for length, ids in self.windows.items():
            with bar(len(ids), f"{title}, {length} tokens", "window") as progress:
                value = perplexity(model, ids, self.config.batch_tokens, progress.update)
            protocol = {"length": length, "windows": len(ids), "dtype": str(model.dtype).removeprefix("torch.")}
            rows.append(("perplexity", value, "", protocol))
        return rows

    def elsewhere(self, checkpoint: Path, like: PreTrainedModel) -> list[Measure]:
        """The same in a fresh process, with an independent computation."""
        values = perplexity_elsewhere(checkpoint, self.windows, like, self.config.batch_tokens)
        return [("perplexity", value, "", {"length": length}) for length, value in values.items()]


@dataclass
class Classifying:
    """The task's metrics, the loss, and agreement with the dense model, for each test split."""

    task: ClassificationTask
    config: Evaluation
    dense: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[str, Tensor] = field(default_factory=dict)

    def of(self, title: str, model: PreTrainedModel) -> list[Measure]:
        """Measures on every split."""
        rows: list[Measure] = []
        for split, examples in self.task.tests.items():
            self.labels[split] = aligned(examples, model)
            with bar(len(examples.labels), f"{title}, {split}", "example") as progress:
                found = outputs(model, examples.encoded, ("logits",), self.config.batch_tokens, progress.update)
            rows += self._rows(split, found)
        return rows

    def elsewhere(self, checkpoint: Path, like: PreTrainedModel) -> list[Measure]:
        """Measures on the first split."""
        split, examples = next(iter(self.task.tests.items()))
        return list(self._rows(split, outputs_elsewhere(checkpoint, examples.encoded, ("logits",), like)))

    def _rows(self, split: str, found: list[tuple[Tensor, ...]]) -> Iterator[Measure]:
        logits = torch.stack([row[0] for row in found])
        metrics = classification_metrics(logits, self.labels[split], self.task.config.metrics, self.dense.get(split))
        self.dense.setdefault(split, logits)
        yield from ((name, value, "", {"split": split, "examples": len(found)}) for name, value in metrics.items())


@dataclass
class Answering:
    """Exact match and F1, for each test split."""

    task: QuestionAnsweringTask
    config: Evaluation

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

    def elsewhere(self, checkpoint: Path, like: PreTrainedModel) -> list[Measure]:
        """Measures on the first split."""
        split, questions = next(iter(self.task.tests.items()))
        names = ("start_logits", "end_logits")
        return self._rows(split, outputs_elsewhere(checkpoint, questions.windows.encoded, names, like))

    def _rows(self, split: str, found: list[tuple[Tensor, ...]]) -> list[Measure]:
        questions = self.task.tests[split]
        texts = answers(questions, [row[0] for row in found], [row[1] for row in found], self.task.config)
        scores = [exact_and_f1(text, row["answers"]["text"]) for text, row in zip(texts, questions.rows, strict=True)]
        protocol = {"split": split, "questions": len(scores)}
        exact, f1 = (sum(column) / len(scores) for column in zip(*scores, strict=True))
        return [("exact_match", exact, "", protocol), ("f1", f1, "", protocol)]
