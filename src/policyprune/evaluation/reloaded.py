"""Whether a checkpoint that another process loaded measures what the model in memory did, to rounding."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from policyprune.errors import RunError
from policyprune.evaluation.measure import Measure

RELATIVE = {torch.float32: 1e-3}  # of a loss or a perplexity
RELATIVE_HALF = 2e-2  # of one in bfloat16 or float16
LOSSES = ("perplexity", "cross_entropy", "squared_error")
PER_EXAMPLE = (
    "accuracy",
    "agreement",
    "exact_match",
)  # means over examples; the others weigh some examples more
HEAVIER = 4.0


class NotTrustworthyError(RunError):
    """What was written is another model than the one that was measured."""


def check_reloaded(
    memory: Sequence[Measure], reloaded: Sequence[Measure], dtype: torch.dtype, checkpoint: Path
) -> None:
    """NotTrustworthyError, naming the first number that differs, unless all that was measured twice agrees."""
    own = {_key(row): row for row in memory}
    pairs = [(own[_key(row)], row) for row in reloaded if _key(row) in own]
    for before, after in pairs:
        if not agree(before, after, dtype):
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
    one, other = (row.value if row.value is not None else math.nan for row in (before, after))
    if not (math.isfinite(one) and math.isfinite(other)):
        return math.isfinite(one) == math.isfinite(other)
    if before.metric in LOSSES:
        return abs(one - other) <= tolerance * max(1.0, abs(one))
    examples = before.protocol.get("examples", before.protocol.get("questions", 1))
    flips = max(1, math.ceil(tolerance * examples)) / examples
    return bool(abs(one - other) <= flips * (1.0 if before.metric in PER_EXAMPLE else HEAVIER) + 1e-9)


def _key(row: Measure) -> tuple[str, tuple[tuple[str, str], ...]]:
    return row.metric, tuple(sorted((key, str(value)) for key, value in row.protocol.items()))


def _shown(row: Measure) -> str:
    return "not a number" if row.value is None or not math.isfinite(row.value) else f"{row.value:,.4g}"
