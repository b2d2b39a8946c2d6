"""Answers from the logits of windows, and SQuAD's exact match and F1."""

import collections
import re
import string

import torch
from torch import Tensor

from policyprune.config.schema import QuestionAnswering
from policyprune.tasks.question_answering import Questions

BEST = 20  # start and end positions that are combined


def answers(
    questions: Questions, start: list[Tensor], end: list[Tensor], config: QuestionAnswering
) -> list[str] | None:
    """The best answer text of each question from the logits (L,) of its windows; "" where none is better.

    None where a logit is not finite: a broken model would be right about every question without an answer.
    """
    best: list[tuple[float, str]] = [(-float("inf"), "")] * len(questions.rows)
    none: list[float] = [float("inf")] * len(questions.rows)
    for index, owner in enumerate(questions.windows.question.tolist()):
        offsets = questions.windows.offsets[index]
        s, e = start[index], end[index]
        if not bool((s.isfinite() & e.isfinite()).all()):
            return None
        none[owner] = min(none[owner], float(s[0] + e[0]))
        inside = torch.tensor([pair is not None for pair in offsets])
        s, e = (x[: len(offsets)].masked_fill(~inside, -torch.inf) for x in (s, e))
        firsts, lasts = (x.topk(min(BEST, len(x))).indices for x in (s, e))
        length = lasts[None, :] - firsts[:, None]
        score = s[firsts][:, None] + e[lasts][None, :]
        score = score.masked_fill((length < 0) | (length >= config.max_answer_length), -torch.inf)
        top = int(score.argmax())
        value = float(score.flatten()[top])
        if value > best[owner][0]:
            first, last = int(firsts[top // len(lasts)]), int(lasts[top % len(lasts)])
            context = questions.rows[owner]["context"]
            best[owner] = (value, context[offsets[first][0] : offsets[last][1]])  # type: ignore[index]
    if not config.no_answer:
        return [text for _, text in best]
    pairs = zip(best, none, strict=True)
    return [text if value + config.no_answer_threshold >= empty else "" for (value, text), empty in pairs]


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
    found, wanted = normalized(prediction).split(), normalized(gold).split()
    if not found or not wanted:
        return float(found == wanted)
    common = sum((collections.Counter(found) & collections.Counter(wanted)).values())
    if not common:
        return 0.0
    precision, recall = common / len(found), common / len(wanted)
    return 2 * precision * recall / (precision + recall)
