"""Which mask a search begins with and which it returns, by examples held out from its rewards and from tunings."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from policyprune.pruning.optimizers.ppo.held_out_losses import HeldOutLosses

SEARCHED = "search"


@dataclass(frozen=True)
class Starts:
    """The warm starts (n,) by name, and how bad each is, tuned, on each held-out example: (H,) float64."""

    masks: dict[str, Tensor]
    judged: dict[str, Tensor]

    @staticmethod
    def of(masks: dict[str, Tensor], losses: HeldOutLosses) -> "Starts":
        """Judge the masks as they are after the tuning."""
        return Starts(masks, {name: losses.judged(mask, tuned=True) for name, mask in masks.items()})

    @property
    def best(self) -> str:
        """The start with the lowest mean, the first of equals."""
        return min(self.masks, key=lambda name: mean(self.judged[name]))


def choose(starts: Starts, finalists: list[Tensor], losses: HeldOutLosses) -> tuple[Tensor, dict[str, Any]]:
    """The mask (n,) to return, and what the record says of it.

    The best of the finalists, untuned, challenges the best start, both tuned. It has to be better by more than one
    standard error, since many masks were tried on the way to it: what a search finds on its own examples and not on
    others falls back to the start.
    """
    challenger = min(finalists, key=lambda mask: mean(losses.judged(mask, tuned=False)))
    start = starts.best
    before, after = starts.judged[start], losses.judged(challenger, tuned=True)
    gain, error = advantage(before, after)
    chosen = SEARCHED if gain > error else start
    means = {**{name: mean(judged) for name, judged in starts.judged.items()}, SEARCHED: mean(after)}
    record = {
        "chosen": chosen,
        "start": start,
        "examples": len(before),
        "held_out": {name: value if math.isfinite(value) else None for name, value in means.items()},
        "gain": gain if math.isfinite(gain) else None,
        "standard_error": error if math.isfinite(error) else None,
    }
    return challenger if chosen == SEARCHED else starts.masks[start], record


def mean(judged: Tensor) -> float:
    """Mean over examples (H,); infinite where any is NaN or infinite."""
    return float(judged.mean()) if bool(judged.isfinite().all()) else math.inf


def advantage(before: Tensor, after: Tensor) -> tuple[float, float]:
    """By how much `after` (H,) is lower than `before` (H,), and the standard error of that, by the same examples.

    What is not finite is infinitely bad. Of one example nothing can be said.
    """
    if math.isinf(mean(after)):
        return -math.inf, 0.0
    if math.isinf(mean(before)):
        return math.inf, 0.0
    lower = before - after
    error = float(lower.std() / math.sqrt(len(lower))) if len(lower) > 1 else math.inf
    return float(lower.mean()), error
