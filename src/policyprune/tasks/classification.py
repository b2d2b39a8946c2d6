"""Classification of one or two sentences: GLUE and what looks like it."""

from dataclasses import dataclass, field, replace
from typing import Any

from datasets import Dataset
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.config.schema import Classification
from policyprune.errors import UsageError
from policyprune.tasks.labelled import Encoded, check_texts, drawn, encode, load_splits, without
from policyprune.tasks.labels import ClassNames, aligned, check_names, labels_of, names_of
from policyprune.tasks.task import check_positions

SAMPLE = 4  # examples of a rehearsal


@dataclass(frozen=True)
class LabelledExamples:
    """Encoded examples and their labels (N,): class numbers, or float scores for a regression."""

    encoded: Encoded
    labels: Tensor
    names: ClassNames | None = None

    def first(self, count: int) -> "LabelledExamples":
        """The first `count` of them."""
        return replace(self, encoded=self.encoded.first(count), labels=self.labels[:count])

    def labels_for(self, model: PreTrainedModel) -> Tensor:
        """The labels in the order of the model's classes, where model and data name them; else as they are."""
        return aligned(self.labels, self.names, model)


@dataclass(frozen=True, kw_only=True)
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
        labels = self.calibration.labels_for(model)[rows].to(model.device)
        return losses(model(**inputs).logits, labels)

    def check(self, model: PreTrainedModel) -> list[str]:
        """UsageError for a model whose classes are not those of the data."""
        check_model(self.config, model)
        check_names(self.calibration.names, model)
        return []


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Loss of each example (B,) float32 from logits (B, classes) and labels (B,)."""
    if logits.shape[-1] == 1:
        return (logits.float().squeeze(-1) - labels.float()).square()
    return functional.cross_entropy(logits.float(), labels, reduction="none")


def check_model(config: Classification, model: PreTrainedModel) -> None:
    """UsageError for a head of another number of classes, and for examples longer than the model's positions."""
    if model.config.num_labels != config.classes:
        has = model.config.num_labels
        raise UsageError(
            f"task.classes: {config.classes} ({'a regression' if config.classes == 1 else 'classes'} of "
            f"task={config.name}), but the model's head has {has}; take a model that was fine-tuned on this task"
        )
    check_positions(model, {"task.max_length": config.max_length})


def build(
    config: Classification, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None
) -> ClassificationTask:
    """Load and tokenise the splits; the calibration examples are drawn by the seed, none of them in a test split."""
    rows_of = load_splits(config)
    loaded = {split: rows_of[split] for split in config.test_splits}
    train, origin = rows_of[config.calibration_split]
    for name, rows in [("calibration", train), *((split, rows) for split, (rows, _) in loaded.items())]:
        for key, columns in (("task.text_columns", config.text_columns), ("task.label_column", [config.label_column])):
            missing = [column for column in columns if column not in rows.column_names]
            if missing:
                raise UsageError(f"{key}: {name} has no {missing[0]!r}, only {', '.join(rows.column_names)}")
        for column in config.text_columns:
            check_texts(rows, column, name)
    names = names_of({split: rows for split, (rows, _) in rows_of.items()}, config)
    train = without(train, [rows for rows, _ in loaded.values()], config.text_columns)
    train = drawn(train, config.calibration)
    protocol = {
        "task": config.name,
        "calibration": {"source": origin, "count": len(train), "seed": config.calibration.drawn_by},
        "tests": {split: {"source": where, "examples": len(rows)} for split, (rows, where) in loaded.items()},
        "max_length": config.max_length,
        "classes": names.names if names else None,
    }

    def examples(rows: Dataset, split: str) -> LabelledExamples:
        texts = [list(rows[column]) for column in config.text_columns]
        encoded = tokenizer(*texts, truncation=True, max_length=config.max_length)
        return LabelledExamples(encode(tokenizer, encoded), labels_of(rows, split, config, names), names)

    tests = {split: examples(rows, split) for split, (rows, _) in loaded.items()}
    calibration = examples(train, config.calibration_split)
    return ClassificationTask(calibration=calibration, tests=tests, config=config, protocol=protocol)
