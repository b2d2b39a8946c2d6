"""Question answering: the best answer from the logits of windows, and SQuAD's exact match and F1.

The scores are computed here: Hugging Face's `evaluate` loads its squad script from the hub, which a run may not reach.
"""

import collections
import hashlib
import re
import string
from collections.abc import Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.config.schema import QuestionAnswering
from policyprune.evaluation.accuracy import outputs, standard_error
from policyprune.evaluation.fresh_process import outputs_elsewhere
from policyprune.evaluation.measures import Measure, digest
from policyprune.progress import bar
from policyprune.tasks.question_answering import QuestionAnsweringTask, Questions

BEST = 20  # start and end positions that are combined
OUTPUTS = ("start_logits", "end_logits")
METRICS = ("exact_match", "f1")


def answers(
    questions: Questions, start: list[Tensor], end: list[Tensor], config: QuestionAnswering
) -> list[str] | None:
    """The best answer text of each question from the logits (L,) of its windows; "" where none is better.

    None where a logit is not finite: a broken model would be right about every question without an answer.
    """
    best: list[tuple[float, str]] = [(-float("inf"), "")] * len(questions.rows)
    no_answer: list[float] = [float("inf")] * len(questions.rows)
    for index, question in enumerate(questions.windows.question.tolist()):
        if not bool((start[index].isfinite() & end[index].isfinite()).all()):
            return None
        no_answer[question] = min(no_answer[question], float(start[index][0] + end[index][0]))
        offsets = questions.windows.offsets[index]
        score, first, last = _best_span(start[index], end[index], offsets, config.max_answer_length)
        if score > best[question][0]:
            context = questions.rows[question]["context"]
            best[question] = (score, context[offsets[first][0] : offsets[last][1]])  # type: ignore[index]
    if not config.no_answer:
        return [text for _, text in best]
    pairs = zip(best, no_answer, strict=True)
    return [text if score + config.no_answer_threshold >= empty else "" for (score, text), empty in pairs]


def _best_span(
    start: Tensor, end: Tensor, offsets: list[tuple[int, int] | None], longest: int
) -> tuple[float, int, int]:
    """Score, first and last token of the best answer of at most `longest` tokens in the context of a window."""
    in_context = torch.tensor([pair is not None for pair in offsets])
    start, end = (logits[: len(offsets)].masked_fill(~in_context, -torch.inf) for logits in (start, end))
    firsts, lasts = (logits.topk(min(BEST, len(logits))).indices for logits in (start, end))
    length = lasts[None, :] - firsts[:, None]
    scores = start[firsts][:, None] + end[lasts][None, :]
    scores = scores.masked_fill((length < 0) | (length >= longest), -torch.inf)
    top = int(scores.argmax())
    return float(scores.flatten()[top]), int(firsts[top // len(lasts)]), int(lasts[top % len(lasts)])


def normalized(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_and_f1(prediction: str, golds: list[str]) -> tuple[float, float]:
    """Exact match and token F1 against the best of the gold answers; no gold answer means that "" is right."""
    golds = [gold for gold in golds if normalized(gold)] or [""]
    scores = [(float(normalized(prediction) == normalized(gold)), _f1(prediction, gold)) for gold in golds]
    return max(exact for exact, _ in scores), max(f1 for _, f1 in scores)


def _f1(prediction: str, gold: str) -> float:
    predicted_words, gold_words = normalized(prediction).split(), normalized(gold).split()
    if not predicted_words or not gold_words:
        return float(predicted_words == gold_words)
    common = sum((collections.Counter(predicted_words) & collections.Counter(gold_words)).values())
    if not common:
        return 0.0
    precision, recall = common / len(predicted_words), common / len(gold_words)
    return 2 * precision * recall / (precision + recall)


@dataclass(frozen=True)
class AnswerQuality:
    """Exact match and F1, for each test split."""

    task: QuestionAnsweringTask
    batch_tokens: int

    def check(self) -> list[str]:
        """Nothing that the task does not say."""
        return []

    def trained_on(self, read: Set[str]) -> list[str]:
        """Nothing: there are no other texts."""
        return []

    def identity(self) -> dict[str, Any]:
        """The windows of all questions, and how answers are taken from them."""
        tests = self.task.tests.items()
        return {
            "windows": {split: digest(test.windows.encoded.tensors["input_ids"]) for split, test in tests},
            "questions": {split: hashlib.sha256(repr(test.rows).encode()).hexdigest() for split, test in tests},
            "task": asdict(self.task.config),
            "batch_tokens": self.batch_tokens,
        }

    def sample(self) -> "AnswerQuality":
        """The first question of each split."""
        return replace(self, task=self.task.sample())

    def of(self, title: str, model: PreTrainedModel) -> list[Measure]:
        """Measures on every split."""
        rows: list[Measure] = []
        for split, questions in self.task.tests.items():
            encoded = questions.windows.encoded
            with bar(len(encoded.lengths), f"{title}, {split}", "window") as progress:
                logits = outputs(model, encoded, OUTPUTS, self.batch_tokens, progress.update)
            rows += self._rows(split, logits)
        return rows

    def elsewhere(self, checkpoint: Path, like: PreTrainedModel, trusted: bool = False) -> list[Measure]:
        """Measures on the first split."""
        split, questions = next(iter(self.task.tests.items()))
        return self._rows(split, outputs_elsewhere(checkpoint, questions.windows.encoded, OUTPUTS, like, trusted))

    def _rows(self, split: str, logits: list[tuple[Tensor, ...]]) -> list[Measure]:
        questions = self.task.tests[split]
        texts = answers(questions, [start for start, _ in logits], [end for _, end in logits], self.task.config)
        protocol: dict[str, Any] = {"split": split, "questions": len(questions.rows)}
        if self.task.config.no_answer:  # what a model that finds no answer anywhere would have
            protocol["chance"] = sum(not row["answers"]["text"] for row in questions.rows) / len(questions.rows)
        if texts is None:
            return [Measure(name, None, "", protocol) for name in METRICS]
        scores = [exact_and_f1(text, row["answers"]["text"]) for text, row in zip(texts, questions.rows, strict=True)]
        columns = zip(METRICS, zip(*scores, strict=True), strict=True)
        return [
            Measure(name, sum(values) / len(scores), "", protocol, standard_error(values)) for name, values in columns
        ]
