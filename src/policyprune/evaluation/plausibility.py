"""Whether the numbers of a run can be trusted: models that do not work here, news too good to be true, other files.

`doubts` gives a line for each number of a record that is doubtful. `check_reloaded` refuses a checkpoint that measures
something else when another process loads it. The numbers stay as they are.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from policyprune.errors import RunError
from policyprune.evaluation.measures import Measure

ABSURD = 100.0  # perplexity: models of 100 million parameters have 15 to 40 on English text, those of a billion 8 to 15
NOISE = 2.0  # standard errors of a difference
BETTER = {"perplexity": -1, "squared_error": -1, "accuracy": 1, "f1": 1, "exact_match": 1, "zero_shot_mean": 1}
UNPRUNED = ("dense", "evaluated")
PRUNED = ("pruned", "tuned")
RELATIVE = {torch.float32: 1e-3}  # of a loss or a perplexity
RELATIVE_HALF = 2e-2  # of one in bfloat16 or float16
LOSSES = ("perplexity", "cross_entropy", "squared_error")
PER_EXAMPLE = ("accuracy", "agreement", "exact_match")  # means over examples; other metrics weigh some more than others
HEAVIER = 4.0  # how much more


class Row(Protocol):
    """A row of a record."""

    subject: str
    metric: str
    value: float | int | None
    protocol: dict[str, Any]
    stderr: float | None


def doubts(rows: Sequence[Row]) -> list[str]:
    """Everything that is doubtful about the rows of a record."""
    return [*absurd(rows), *at_chance(rows), *too_good(rows)]


def absurd(rows: Sequence[Row]) -> Iterator[str]:
    """Unpruned models with a perplexity that no text has for a model that works."""
    for row in rows:
        if row.subject in UNPRUNED and row.metric == "perplexity" and row.value is not None and row.value > ABSURD:
            text = f" on {row.protocol['text']}" if "text" in row.protocol else ""
            yield (
                f"the {row.subject} model's perplexity{text} is {row.value:.1f} ({row.protocol['length']} tokens), "
                "absurd for text: look at task.bos, the tokenizer and the language of the text"
            )


def absurd_from_the_start(protocol: Mapping[str, Any]) -> Iterator[str]:
    """The same, before anything is searched, of the loss that decided where BOS stands."""
    measured = protocol.get("bos_measured")
    if measured:
        loss = measured["loss_with_bos" if protocol["bos"] == "window" else "loss_without_bos"]
        if not loss <= math.log(ABSURD):
            yield (
                f"the model's loss on {measured['tokens']} tokens of calibration text is {loss:.2f} nats (perplexity "
                f"over {ABSURD:.0f}), absurd for text: look at the model, the tokenizer and the language of the text"
            )


def at_chance(rows: Sequence[Row]) -> Iterator[str]:
    """Unpruned models that are not a standard error above `chance` in a row's protocol, the commonest label's share."""
    for row in rows:
        chance = row.protocol.get("chance")
        if row.subject not in UNPRUNED or row.value is None or chance is None:
            continue
        if row.value - (row.stderr or 0.0) <= chance:
            yield (
                f"the {row.subject} model has {row.metric} {row.value:.4f} ({row.protocol.get('split', 'test')}), not "
                f"above chance ({chance:.4f}): look at the order of the labels and at what the model was fine-tuned on"
            )


def too_good(rows: Sequence[Row]) -> Iterator[str]:
    """Pruned models that are better than the dense one by more than the noise of both numbers."""
    for row in rows:
        if row.subject not in PRUNED or row.metric not in BETTER:
            continue
        for dense in rows:
            if (dense.subject, dense.metric, dense.protocol) != ("dense", row.metric, row.protocol):
                continue
            gain = _gain(dense, row)
            if gain is not None and gain > NOISE:
                yield (
                    f"the {row.subject} model is better than the dense one beyond noise ({row.metric} {row.value:.4g} "
                    f"against {dense.value:.4g}, {gain:.1f} standard errors): the dense model may be measured wrongly, "
                    "look at task.bos, labels and tokenizer"
                )


def _gain(dense: Row, row: Row) -> float | None:
    """How much better `row` is, in standard errors of the difference; None where one is not known.

    Perplexities are compared by their logarithms, whose standard error is relative to the perplexity. Both rows are
    of the same examples, which makes the difference less noisy than assumed here.
    """
    if dense.value is None or row.value is None or dense.stderr is None or row.stderr is None:
        return None
    difference, errors = row.value - dense.value, (dense.stderr, row.stderr)
    if row.metric == "perplexity":
        difference, errors = math.log(row.value / dense.value), (dense.stderr / dense.value, row.stderr / row.value)
    gain, noise = BETTER[row.metric] * difference, math.hypot(*errors)
    return gain / noise if noise else math.inf if gain > 0 else 0.0


class NotTrustworthyError(RunError):
    """What was written is another model than the one that was measured."""


def check_reloaded(
    memory: Sequence[Measure], reloaded: Sequence[Measure], dtype: torch.dtype, checkpoint: Path
) -> None:
    """NotTrustworthyError, naming the first number that differs, unless all that was measured twice agrees."""
    in_memory = {_key(row): row for row in memory}
    for after in reloaded:
        before = in_memory.get(_key(after))
        if before is not None and not agree(before, after, dtype):
            raise NotTrustworthyError(
                f"the checkpoint {str(checkpoint)!r} is not trustworthy: its {before.metric.replace('_', ' ')} is "
                f"{_shown(after)} when another process loads it, {_shown(before)} in memory"
            )


def agree(before: Measure, after: Measure, dtype: torch.dtype) -> bool:
    """Whether two values of one measure differ by rounding alone; two that are no number agree.

    Losses and perplexities may differ by 1e-3 of their size in float32 and 2e-2 in half precision. Of the examples that
    other metrics count, this share, and one in any case, may be ties that rounding decides.
    """
    tolerance = RELATIVE.get(dtype, RELATIVE_HALF)
    first, second = (row.value if row.value is not None else math.nan for row in (before, after))
    if not (math.isfinite(first) and math.isfinite(second)):
        return math.isfinite(first) == math.isfinite(second)
    difference = abs(first - second)
    if before.metric in LOSSES:
        return difference <= tolerance * max(1.0, abs(first))
    examples = before.protocol.get("examples", before.protocol.get("questions", 1))
    flips = max(1, math.ceil(tolerance * examples)) / examples
    return bool(difference <= flips * (1.0 if before.metric in PER_EXAMPLE else HEAVIER) + 1e-9)


def _key(row: Measure) -> tuple[str, tuple[tuple[str, str], ...]]:
    return row.metric, tuple(sorted((key, str(value)) for key, value in row.protocol.items()))


def _shown(row: Measure) -> str:
    return "not a number" if row.value is None or not math.isfinite(row.value) else f"{row.value:,.4g}"
