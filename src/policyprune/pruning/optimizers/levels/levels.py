"""Search over widths: the loss of each block at a few widths, a power law between them, and a knapsack over all
blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from policyprune.config.fields import named, number
from policyprune.config.schema import Config
from policyprune.errors import RunError
from policyprune.pruning.optimizers.levels.level_search import LevelSearch, Losses
from policyprune.pruning.optimizers.problem import FORGETFUL, Found, Problem, Report, State

if TYPE_CHECKING:
    from torch import Tensor

TRIES = 4  # of an exchange, each time of fewer levels
WORST = 1e6  # stands for a loss that is NaN or infinite


@dataclass(kw_only=True)
class Levels(LevelSearch):
    """Widths of blocks by the measured loss of each block alone; which units go is the importance's order.

    Masks are tried with the least-squares weights of the units that they keep.
    """

    name: str = named("levels")
    widths: list[float] = number(
        [0.75, 0.5, 0.25], above=0, below=1, help="shares of a block's units at which its loss is measured"
    )
    sequences: int = number(16, at_least=1, help="calibration sequences on which losses are measured")
    rounds: int = number(0, at_least=0, help="of measuring again what a level more or less of each block costs")

    def check(self, config: Config) -> None:
        """Nothing is forbidden: shares that the budget gives to blocks are taken."""

    def search(self, problem: Problem, report: Report, state: State = FORGETFUL) -> Found:
        """Measure, allocate, and measure again around what was allocated.

        The loss of the model with one block at a width, all others whole, is taken at `widths`. Between them it is
        a power of the importance's error. The sum over blocks is minimised under the budget. Then each block is tried
        with one level more and one less, all others as allocated, and levels are exchanged as long as the loss falls.

        Where the budget gives each block its share, nothing is left to measure: the order decides.
        """
        from policyprune.pruning.budget.selection import one_shot_mask

        if problem.budget.gives_shares:
            mask = one_shot_mask(problem.importance, problem.budget, per_cost=False)
            return Found(mask, mask.float(), 0)
        losses = Losses(problem, self.levels, report, state)
        allocation = Allocation(losses, losses.draw(self.sequences))
        return losses.found(allocation.refine(allocation.start(self.widths), self.rounds))


class Allocation:
    """Widths by losses that are measured one by one, each a step of the search, on the same sequences `rows` (B,)."""

    def __init__(self, losses: Losses, rows: Tensor) -> None:
        self._losses, self._rows, self._widths = losses, rows, losses.widths

    def loss(self, counts: list[int]) -> float:
        """Loss with so many units of each block."""
        (loss,) = self._losses.of([counts], self._rows)
        skipped = not math.isfinite(loss)
        if skipped and counts == self._widths.whole:
            raise RunError("the loss of the dense model is not a number, its weights are broken")
        loss = WORST if skipped else loss
        self._losses.tell({"loss": loss, "skipped": float(skipped), "keep": self._losses.keep(counts)})
        return loss

    def start(self, shares: list[float]) -> list[int]:
        """Widths by the losses of single blocks at `shares` of their units, which the curves of blocks learn."""
        whole = self._widths.whole
        base = self.loss(whole)
        for index, curve in enumerate(self._widths.curves):
            for count in curve.at(shares):
                loss = self.loss([*whole[:index], count, *whole[index + 1 :]])
                curve.measured[count] = max(loss - base, 0.0)
        return self._widths.allocate(
            [dict(zip(c.levels, c.losses().tolist(), strict=True)) for c in self._widths.curves]
        )

    def refine(self, counts: list[int], rounds: int) -> list[int]:
        """Widths after rounds of exchanges of levels between blocks, by what one more or less costs at these widths.

        The exchange that promises most is tried first; while it does not lower the loss, a change has to promise more.
        """
        least = self.loss(counts)
        for _ in range(rounds):
            changes = []
            for index, curve in enumerate(self._widths.curves):
                others = [width for width in curve.beside(counts[index]) if width is not None]
                losses = {width: self.loss([*counts[:index], width, *counts[index + 1 :]]) for width in others}
                changes.append({width: loss - least for width, loss in losses.items()})
            found, threshold = counts, 0.0
            for _ in range(TRIES):
                choices = [
                    {own: 0.0} | {width: change + threshold for width, change in of_block.items()}
                    for own, of_block in zip(counts, changes, strict=True)
                ]
                tried = self._widths.allocate(choices)
                if tried == counts:
                    break
                if (loss := self.loss(tried)) < least:
                    found, least = tried, loss
                    break
                sizes = sorted(abs(of_block.get(width, 0.0)) for width, of_block in zip(tried, changes, strict=True))
                threshold = 2 * threshold if threshold else sizes[len(sizes) // 2]
            if found == counts:
                break
            counts = found
        return counts
