"""Which mask a search begins with and which it returns, by examples held out from its rewards and from tunings.

What a mask is judged by are two numbers for each example, (H, 2): the divergence of its predictions, and the loss.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from policyprune.pruning.optimizers.ppo.held_out_losses import HeldOutLosses

SEARCHED = "search"
MEASURES = ("divergence", "loss")


@dataclass(frozen=True)
class Starts:
    """The warm starts (n,) by name, and what each, tuned, is judged by: (H, 2) float64."""

    masks: dict[str, Tensor]
    judged: dict[str, Tensor]

    @staticmethod
    def of(masks: dict[str, Tensor], losses: HeldOutLosses) -> "Starts":
        """Judge the masks as they are after the tuning."""
        return Starts(masks, {name: losses.judged(mask, tuned=True) for name, mask in masks.items()})

    @property
    def best(self) -> str:
        """The name of the best one."""
        names = list(self.masks)
        return names[best_of([self.judged[name] for name in names])]


def choose(starts: Starts, finalists: list[Tensor], losses: HeldOutLosses) -> tuple[Tensor, dict[str, Any]]:
    """The mask (n,) to return, and what the record says of it.

    The best of the finalists, untuned, challenges the best start, both tuned. It has to be better by more than one
    standard error, since many masks were tried on the way to it: what a search finds on its own examples and not on
    others falls back to the start.
    """
    challenger = finalists[best_of([losses.judged(mask, tuned=False) for mask in finalists])]
    start = starts.best
    before, after = starts.judged[start], losses.judged(challenger, tuned=True)
    chosen = SEARCHED if beats(after, before) else start
    gains = [advantage(before[:, column], after[:, column]) for column in range(len(MEASURES))]
    record = {
        "chosen": chosen,
        "start": start,
        "examples": len(before),
        "held_out": {
            name: _named([mean(judged[:, column]) for column in range(len(MEASURES))])
            for name, judged in {**starts.judged, SEARCHED: after}.items()
        },
        "gain": _named([gain for gain, _ in gains]),
        "standard_error": _named([error for _, error in gains]),
    }
    return challenger if chosen == SEARCHED else starts.masks[start], record


def best_of(judged: Sequence[Tensor]) -> int:
    """The index of the best, by (H, 2) each.

    Of all whose divergence is not higher than the lowest by more than one standard error it has the least loss.
    """
    divergences = [each[:, 0] for each in judged]
    lowest = min(divergences, key=mean)
    rivals = [index for index, own in enumerate(divergences) if not _significant(own, lowest)]
    return min(rivals, key=lambda index: mean(judged[index][:, 1]))


def beats(challenger: Tensor, champion: Tensor) -> bool:
    """Whether a challenger is better than a champion, by (H, 2) each, by more than one standard error.

    It is where its divergence is lower by that, or its loss, if the divergence is not higher.
    """
    if _significant(champion[:, 0], challenger[:, 0]):
        return True
    return mean(challenger[:, 0]) <= mean(champion[:, 0]) and _significant(champion[:, 1], challenger[:, 1])


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


def _significant(before: Tensor, after: Tensor) -> bool:
    gain, error = advantage(before, after)
    return gain > error


def _named(values: list[float]) -> dict[str, float | None]:
    """By measure; None for what is not finite, which JSON cannot hold."""
    return {name: value if math.isfinite(value) else None for name, value in zip(MEASURES, values, strict=True)}
