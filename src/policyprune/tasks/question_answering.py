"""Extractive question answering: a long context is read in overlapping windows of tokens."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.config.schema import QuestionAnswering
from policyprune.errors import UsageError
from policyprune.tasks.labelled import Encoded, check_texts, drawn, encode, load_splits, without
from policyprune.tasks.tables import NoTableError, answers_of
from policyprune.tasks.task import check_positions


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Encoded windows, the question that each belongs to (N,), and character offsets of their context tokens.

    `spans` (N, 2) are the first and last token of the answer, (0, 0) where the window holds none.
    """

    encoded: Encoded
    question: Tensor
    offsets: list[list[tuple[int, int] | None]]
    spans: Tensor

    def chosen(self, index: Tensor) -> "Windows":
        """The windows `index`."""
        return Windows(
            encoded=self.encoded.chosen(index),
            question=self.question[index],
            offsets=[self.offsets[i] for i in index.tolist()],
            spans=self.spans[index],
        )


@dataclass(frozen=True)
class Questions:
    """Rows of id, context and answer texts, and their windows."""

    rows: list[dict[str, Any]]
    windows: Windows

    def first(self) -> "Questions":
        """The first question alone."""
        return Questions(self.rows[:1], self.windows.chosen((self.windows.question == 0).nonzero().flatten()))


def span_losses(out: Any, spans: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean cross-entropy of start and end: spans (B, 2), mask (B, L) -> (B,) float32. None is looked for in padding."""
    padding, spans = attention_mask == 0, spans.to(attention_mask.device)
    both = [logits.float().masked_fill(padding, -torch.inf) for logits in (out.start_logits, out.end_logits)]
    start, end = (functional.cross_entropy(both[i], spans[:, i], reduction="none") for i in (0, 1))
    return (start + end) / 2


@dataclass(frozen=True, kw_only=True)
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

    def loss(self, model: PreTrainedModel, rows: Tensor) -> Tensor:
        """Mean cross-entropy of start and end of each window, over its tokens: rows (B,) -> (B,) float32."""
        inputs = {name: tensor.to(model.device) for name, tensor in self.inputs(rows).items()}
        return span_losses(model(**inputs), self.calibration.spans[rows], inputs["attention_mask"])

    def check(self, model: PreTrainedModel) -> list[str]:
        """UsageError where no test question has an answer and each should; a line where some have none."""
        check_model(self.config, model)
        lines = []
        for split, questions in self.tests.items():
            unanswered = sum(not row["answers"]["text"] for row in questions.rows)
            if unanswered == len(questions.rows) and not self.config.no_answer:
                raise UsageError(f"task.test_splits: none of the {unanswered} questions of {split} has an answer")
            if unanswered and not self.config.no_answer:
                lines.append(
                    f"{unanswered} of {len(questions.rows)} questions of {split} have no answer and count as wrong, as "
                    "task.no_answer=false"
                )
        return lines

    def sample(self) -> "QuestionAnsweringTask":
        """The same with the first test question of each split."""
        return replace(self, tests={split: questions.first() for split, questions in self.tests.items()})


def check_model(config: QuestionAnswering, model: PreTrainedModel) -> None:
    """UsageError for windows longer than the model's positions."""
    check_positions(model, {"task.max_length": config.max_length})


def build(
    config: QuestionAnswering, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None
) -> QuestionAnsweringTask:
    """Load and tokenise. Calibration windows are those that hold the answer, or all where questions may have none."""
    if not tokenizer.is_fast:
        raise UsageError("model.source: question answering needs a fast tokenizer, for its character offsets")
    splits = {split: (checked_rows(rows, split), source) for split, (rows, source) in load_splits(config).items()}
    test_rows = {split: splits[split][0] for split in config.test_splits}
    train, train_source = splits[config.calibration_split]
    train = without(train, list(test_rows.values()), ["question", "context"])
    train = drawn(train, config.calibration)
    windows = make_windows(list(train), config, tokenizer)
    if not config.no_answer:  # a window without its answer teaches nothing where every question has one
        with_answer = windows.spans[:, 1].nonzero().flatten()
        if not len(with_answer):
            raise UsageError(
                f"task.calibration_split: no window of the {len(train)} questions of {config.calibration_split} holds "
                "an answer, and task.no_answer=false"
            )
        windows = windows.chosen(with_answer)
    tests = {}
    for split, rows in test_rows.items():
        first = list(rows.select(range(min(len(rows), config.max_questions or len(rows)))))
        tests[split] = Questions(first, make_windows(first, config, tokenizer))
    protocol = {
        "task": config.name,
        "calibration": {"source": train_source, "count": len(train), "seed": config.calibration.drawn_by},
        "tests": {split: {"source": splits[split][1], "questions": len(test.rows)} for split, test in tests.items()},
        "max_length": config.max_length,
        "stride": config.stride,
    }
    return QuestionAnsweringTask(calibration=windows, tests=tests, config=config, protocol=protocol)


def checked_rows(rows: Dataset, split: str) -> Dataset:
    """Question, context and answers of each row, the answers in one form; UsageError for what is none of these."""
    missing = [column for column in ("question", "context", "answers") if column not in rows.column_names]
    if missing:
        raise UsageError(f"task.rename: {split} has no {missing[0]!r}, only {', '.join(rows.column_names)}")
    for column in ("question", "context"):
        check_texts(rows, column, split)
    try:
        answers = [answers_of(value, f"row {number}") for number, value in enumerate(rows["answers"], 1)]
    except NoTableError as error:
        raise UsageError(f"task.data_files: {split} {error}") from error
    columns = {name: list(rows[name]) for name in ("id", "question", "context") if name in rows.column_names}
    return Dataset.from_dict({**columns, "answers": answers})


def make_windows(rows: list[dict[str, Any]], config: QuestionAnswering, tokenizer: PreTrainedTokenizerBase) -> Windows:
    """Question and context, the context in windows of `max_length` that overlap by `stride` tokens."""
    room = config.max_length - config.stride - tokenizer.num_special_tokens_to_add(pair=True) - 1
    if room < 1:
        raise UsageError(f"task.stride: {config.stride} leaves no room for a question in {config.max_length} tokens")
    questions = [row["question"].strip() for row in rows]
    for index, ids in enumerate(tokenizer(questions, add_special_tokens=False)["input_ids"]):
        if len(ids) > room:  # the tokenizer panics where the context has no more room than the stride
            questions[index] = tokenizer.decode(ids[:room])
    encoded = tokenizer(
        questions,
        [row["context"] for row in rows],
        truncation="only_second",
        max_length=config.max_length,
        stride=config.stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    question = list(encoded["overflow_to_sample_mapping"])
    offsets: list[list[tuple[int, int] | None]] = []
    for index, pairs in enumerate(encoded["offset_mapping"]):
        in_context = [part == 1 for part in encoded.sequence_ids(index)]
        offsets.append([tuple(pair) if inside else None for pair, inside in zip(pairs, in_context, strict=True)])
    spans = [_span(pairs, rows[owner]) for pairs, owner in zip(offsets, question, strict=True)]
    return Windows(
        encoded=encode(tokenizer, encoded),
        question=torch.tensor(question),
        offsets=offsets,
        spans=torch.tensor(spans),
    )


def _span(offsets: list[tuple[int, int] | None], row: dict[str, Any]) -> tuple[int, int]:
    """First and last token of the answer in a window, (0, 0) if it is not wholly inside."""
    if not row["answers"]["text"]:
        return 0, 0
    text, start = row["answers"]["text"][0], row["answers"]["answer_start"][0]
    if row["context"][start : start + len(text)] != text:  # some published offsets are off
        start = row["context"].find(text)
    end = start + len(text)
    tokens = [token for token, pair in enumerate(offsets) if pair and pair[0] < end and pair[1] > start]
    context = [pair for pair in offsets if pair]
    if start < 0 or not tokens or context[0][0] > start or context[-1][1] < end:
        return 0, 0
    return tokens[0], tokens[-1]
