"""Classification of one or two sentences: GLUE and what looks like it."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from datasets import ClassLabel, Dataset
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.config.schema import Classification
from policyprune.errors import UsageError
from policyprune.tasks.encoded import Encoded, encode
from policyprune.tasks.splits import drawn, load_splits, without

SAMPLE = 4  # examples of a rehearsal


@dataclass(frozen=True)
class LabelledExamples:
    """Encoded examples and their labels (N,): class numbers, or float scores for a regression."""

    encoded: Encoded
    labels: Tensor
    names: list[str] | None = None

    def first(self, count: int) -> "LabelledExamples":
        """The first `count` of them."""
        return replace(self, encoded=self.encoded.first(count), labels=self.labels[:count])


@dataclass(frozen=True)
class ClassificationTask:
    """Calibration examples, and test examples by split."""

    calibration: LabelledExamples
    tests: dict[str, LabelledExamples]
    config: Classification
    protocol: dict[str, Any] = field(default_factory=dict)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each calibration example."""
        return self.calibration.encoded.lengths

    def inputs(self, rows: Tensor) -> dict[str, Tensor]:
        """Arguments of the model's forward."""
        return self.calibration.encoded.inputs(rows)

    def sample(self) -> "ClassificationTask":
        """The same with a few test examples of each split."""
        return replace(self, tests={split: examples.first(SAMPLE) for split, examples in self.tests.items()})

    def loss(self, model: PreTrainedModel, rows: Tensor) -> Tensor:
        """Cross-entropy (squared error for a regression) of each example: rows (B,) -> (B,) float32."""
        inputs = {name: tensor.to(model.device) for name, tensor in self.inputs(rows).items()}
        labels = aligned(self.calibration, model)[rows].to(model.device)
        return losses(model(**inputs).logits, labels)


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Loss of each example (B,) float32 from logits (B, classes)."""
    if logits.shape[-1] == 1:
        return (logits.float().squeeze(-1) - labels.float()).square()
    return functional.cross_entropy(logits.float(), labels, reduction="none")


def aligned(examples: LabelledExamples, model: PreTrainedModel) -> Tensor:
    """The labels in the order of the model's classes, where model and data name them alike; else as they are."""
    known = {str(name).lower(): int(index) for name, index in (model.config.label2id or {}).items()}
    names = [name.lower() for name in examples.names or []]
    if not names or set(names) != set(known):
        return examples.labels
    order = torch.tensor([known[name] for name in names])
    return order[examples.labels]


def build(config: Classification, tokenizer: PreTrainedTokenizerBase) -> ClassificationTask:
    """Load and tokenise the splits; the calibration examples are drawn by the seed, none of them in a test split."""
    rows_of = load_splits(config)
    loaded = {split: rows_of[split] for split in config.test_splits}
    train, origin = rows_of[config.calibration_split]
    for name, rows in [("calibration", train), *((split, rows) for split, (rows, _) in loaded.items())]:
        missing = [column for column in [*config.text_columns, config.label_column] if column not in rows.column_names]
        if missing:
            raise UsageError(f"task.text_columns: {name} has no {missing[0]!r}, only {', '.join(rows.column_names)}")
    train = without(train, [rows for rows, _ in loaded.values()], config.text_columns)
    train = drawn(train, config.calibration)
    protocol = {
        "task": config.name,
        "calibration": {"source": origin, "count": len(train), "seed": config.calibration.seed},
        "tests": {split: {"source": where, "examples": len(rows)} for split, (rows, where) in loaded.items()},
        "max_length": config.max_length,
    }
    tests = {split: _labelled(rows, config, tokenizer) for split, (rows, _) in loaded.items()}
    return ClassificationTask(_labelled(train, config, tokenizer), tests, config, protocol)


def _labelled(rows: Dataset, config: Classification, tokenizer: PreTrainedTokenizerBase) -> LabelledExamples:
    texts = [list(rows[column]) for column in config.text_columns]
    encoded = tokenizer(*texts, truncation=True, max_length=config.max_length)
    dtype = torch.float if config.classes == 1 else torch.long
    feature = rows.features[config.label_column]
    names = list(feature.names) if isinstance(feature, ClassLabel) else None
    labels = list(rows[config.label_column])
    if not all(isinstance(label, int | float) for label in labels):
        raise UsageError(f"task.label_column: {config.label_column!r} holds more than numbers, e.g. {labels[0]!r}")
    return LabelledExamples(encode(tokenizer, encoded), torch.tensor(labels, dtype=dtype), names)
