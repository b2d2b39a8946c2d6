"""All that an optimizer may know of the model. Imports no torch, so that the files of optimizers can import it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from policyprune.pruning.budget.budget import Budget
    from policyprune.pruning.space import Space

Evaluate = Callable[["Tensor", "Tensor"], "Tensor"]
Job = tuple["Tensor", "Tensor"]  # masks (B, n) or (1, n), and the rows (B,) that they are tried on
Each = Callable[[Sequence[Job]], list["Tensor"]]
Judge = Callable[["Tensor", "Tensor", bool], "Tensor"]
Report = Callable[[dict[str, "Tensor | float"]], None]


class State(Protocol):
    """Where a search keeps what it needs to go on after an interruption, and finds it again."""

    def load(self) -> dict[str, Any] | None:
        """What was saved last, its tensors on the CPU; None at the beginning."""

    def save(self, make: Callable[[], dict[str, Any]]) -> None:
        """Called after every step, when it was reported: calls `make` where it is time to save.

        `make()` gives tensors, numbers, strings and None, in dicts and lists. May raise when the run is to end.
        """


class NoState:
    """Remembers nothing."""

    def load(self) -> dict[str, Any] | None:
        """Nothing."""
        return None

    def save(self, make: Callable[[], dict[str, Any]]) -> None:
        """Nothing."""


FORGETFUL = NoState()


def one_by_one(evaluate: Evaluate, jobs: Sequence[Job]) -> list[Tensor]:
    """Losses (B,) of each job."""
    return [evaluate(masks, rows) for masks, rows in jobs]


@dataclass(frozen=True)
class Problem:
    """Find a mask within the budget that has a low loss.

    `evaluate(masks, rows)` gives the losses (B,) of the calibration sequences `rows` (B,) under masks (B, n), one for
    each sequence, or (1, n), the same for all; with gradients where these are enabled and the masks have them.
    `lengths` (N,) are the tokens of each sequence there is. `importance` (n,) are the raw importance scores, `start`
    (n,) the initial keep probabilities, on the model's device. `gradients()` are those of the loss with respect to the
    mask, a row per example (rows, n), for those that may back-propagate; None where there are none. `per_cost`: a
    unit's worth is its score divided by its cost. `behind(mask)` gathers second-order statistics anew, behind layers
    that keep as many units as under a mask (n,), and gives their scores (n,); from then on masks get their weights from
    them, where they get any. `each(jobs)` evaluates several masks that do not wait for one another, on as many
    processes as there are; without it they are evaluated one after the other. `judge(mask, rows, tuned)` says how far
    what the model of a mask (n,) predicts is from the dense one, and its loss, on the sequences `rows` (B,): (B, 2);
    `tuned` as the run tunes it, on other sequences. None where losses are all there is.
    """

    evaluate: Evaluate
    space: Space
    budget: Budget
    importance: Tensor
    start: Tensor
    lengths: Tensor
    seed: int
    gradients: Callable[[], Tensor] | None = None
    per_cost: bool = True
    behind: Callable[[Tensor], Tensor] | None = None
    each: Each | None = None
    judge: Judge | None = None

    @property
    def sequences(self) -> int:
        """Number of calibration sequences."""
        return len(self.lengths)

    def losses(self, jobs: Sequence[Job]) -> list[Tensor]:
        """Losses (B,) of each job, without gradients."""
        return self.each(jobs) if self.each else one_by_one(self.evaluate, jobs)


@dataclass(frozen=True)
class Found:
    """Mask (n,) bool, the final keep probabilities (n,), and how many forward and backward passes they took.

    `choice`: what the mask was chosen from, and by which numbers, for the record.
    """

    mask: Tensor
    probabilities: Tensor
    forwards: int
    backwards: int = 0
    choice: dict[str, Any] = field(default_factory=dict)
