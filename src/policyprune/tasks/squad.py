"""Extractive question answering over long contexts in overlapping windows."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.config.schema import QuestionAnswering
from policyprune.errors import UsageError
from policyprune.tasks.splits import check_texts, drawn, load_splits, without
from policyprune.tasks.tables import NoTableError, answers_of
from policyprune.tasks.windows import Windows, choose, make_windows


@dataclass(frozen=True)
class Questions:
    """Rows of id, context and answer texts, and their windows."""

    rows: list[dict[str, Any]]
    windows: Windows

    def first(self) -> "Questions":
        """The first question alone."""
        return Questions(self.rows[:1], choose(self.windows, (self.windows.question == 0).nonzero().flatten()))


@dataclass(frozen=True)
class QuestionAnsweringTask:
    """Calibration windows, and the test questions of each split."""

    calibration: Windows
    tests: dict[str, Questions]
    config: QuestionAnswering
    protocol: dict[str, Any] = field(default_factory=dict)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each calibration window."""
        return self.calibration.encoded.lengths

    def inputs(self, rows: Tensor) -> dict[str, Tensor]:
        """Arguments of the model's forward."""
        return self.calibration.encoded.inputs(rows)

    def sample(self) -> "QuestionAnsweringTask":
        """The same with the first test question of each split."""
        return replace(self, tests={split: questions.first() for split, questions in self.tests.items()})

    def loss(self, model: PreTrainedModel, rows: Tensor) -> Tensor:
        """Mean cross-entropy of start and end of each window, over its tokens: rows (B,) -> (B,) float32."""
        inputs = {name: tensor.to(model.device) for name, tensor in self.inputs(rows).items()}
        out = model(**inputs)
        spans = self.calibration.spans[rows].to(model.device)
        padding = inputs["attention_mask"] == 0
        both = [own.float().masked_fill(padding, -torch.inf) for own in (out.start_logits, out.end_logits)]
        start, end = (functional.cross_entropy(own, spans[:, i], reduction="none") for i, own in enumerate(both))
        return (start + end) / 2


def build(config: QuestionAnswering, tokenizer: PreTrainedTokenizerBase) -> QuestionAnsweringTask:
    """Load and tokenise; of the calibration questions' windows those count that hold the answer, if there is one."""
    if not tokenizer.is_fast:
        raise UsageError("model.source: question answering needs a fast tokenizer, for its character offsets")
    rows_of = {split: (_normal(rows, split), source) for split, (rows, source) in load_splits(config).items()}
    loaded = {split: rows_of[split] for split in config.test_splits}
    train, origin = rows_of[config.calibration_split]
    train = without(train, [rows for rows, _ in loaded.values()], ["question", "context"])
    train = drawn(train, config.calibration)
    windows = make_windows(list(train), config, tokenizer)
    if not config.no_answer:  # a window without its answer teaches nothing where every question has one
        holding = windows.spans[:, 1].nonzero().flatten()
        if not len(holding):
            raise UsageError(
                f"task.calibration_split: no window of the {len(train)} questions of {config.calibration_split} holds "
                "an answer, and task.no_answer=false"
            )
        windows = choose(windows, holding)
    tests = {}
    for split, (rows, _) in loaded.items():
        chosen = rows.select(range(min(len(rows), config.max_questions or len(rows))))
        tests[split] = Questions(list(chosen), make_windows(list(chosen), config, tokenizer))
    protocol = {
        "task": config.name,
        "calibration": {"source": origin, "count": len(train), "seed": config.calibration.seed},
        "tests": {s: {"source": w, "questions": len(tests[s].rows)} for s, (_, w) in loaded.items()},
        "max_length": config.max_length,
        "stride": config.stride,
    }
    return QuestionAnsweringTask(windows, tests, config, protocol)


def _normal(rows: Dataset, split: str) -> Dataset:
    """Question, context and answers of each row, checked, the answers in one form."""
    missing = [column for column in ("question", "context", "answers") if column not in rows.column_names]
    if missing:
        raise UsageError(f"task.rename: {split} has no {missing[0]!r}, only {', '.join(rows.column_names)}")
    for column in ("question", "context"):
        check_texts(rows, column, split)
    try:
        found = [answers_of(value, f"row {number}") for number, value in enumerate(rows["answers"], 1)]
    except NoTableError as error:
        raise UsageError(f"task.data_files: {split} {error}") from error
    columns = {name: list(rows[name]) for name in ("id", "question", "context") if name in rows.column_names}
    return Dataset.from_dict({**columns, "answers": found})
