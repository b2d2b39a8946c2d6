"""Search over widths as ZipLM does it: a knapsack over the errors of blocks, times coefficients that are searched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from policyprune.config.fields import choice, named, number
from policyprune.pruning.optimizers.levels.level_search import LOSS, LevelSearch, Losses
from policyprune.pruning.optimizers.problem import FORGETFUL, Found, Problem, Report, State

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from policyprune.pruning.optimizers.levels.widths import Curve


@dataclass(kw_only=True)
class SPDY(LevelSearch):
    """Widths of blocks by their relative errors, times a sensitivity of each block that is searched (ZipLM).

    Masks are tried with the least-squares weights of the units that they keep, and judged by the loss.
    """

    name: str = named("spdy")
    steps: int = number(1000, at_least=0, help="tries of other sensitivities, after one with equal ones")
    mutation: float = number(
        0.1, above=0, at_most=1, help="share of the sensitivities that a try draws anew, in expectation"
    )
    sequences: int = number(16, at_least=1, help="calibration sequences on which the loss is measured")
    levels: int = number(43, at_least=2, help="widths of FFN blocks to choose from, at most, each 0.9 of the next")
    loss: str = choice("task", choices=("divergence", "task"), help=LOSS)

    @property
    def length(self) -> int | None:
        """Number of tries."""
        return self.steps + 1

    def search(self, problem: Problem, report: Report, state: State = FORGETFUL) -> Found:
        """Return the widths with the least loss (Kurtic et al. 2023, after Frantar and Alistarh 2022).

        The error of a block at a width is that of the importance, as a share of its error without any unit. Widths
        minimise the sum over blocks of sensitivity times error within the budget, by dynamic programming. Sensitivities
        are 1 at first; a try draws some of the best ones anew, uniformly from 0 to 1.
        """
        import torch

        losses = Losses(problem, sum(group.count for group in problem.space.groups), report, state)
        widths = losses.widths = losses.widths.shrinking(self.levels)
        rows = losses.draw(self.sequences)
        errors = [relative_errors(curve) for curve in widths.curves]
        best, found, least = torch.ones(len(errors), dtype=torch.float64), widths.whole, math.inf
        for step in range(self.steps + 1):
            tried = self._mutated(best, losses.generator) if step else best
            choices = [
                {width: factor * error for width, error in of_block.items()}
                for factor, of_block in zip(tried.tolist(), errors, strict=True)
            ]
            counts = widths.allocate(choices)
            (loss,) = losses.of([counts], rows)
            if loss < least or not step:
                best, found, least = tried, counts, loss
            skipped = float(loss == math.inf)
            losses.tell({"loss": loss, "best_loss": least, "skipped": skipped, "keep": losses.keep(found)})
        return losses.found(found)

    def _mutated(self, sensitivities: Tensor, generator: torch.Generator) -> Tensor:
        import torch

        drawn, fresh = torch.rand(2, len(sensitivities), generator=generator, dtype=torch.float64)
        return torch.where(drawn < self.mutation, fresh, sensitivities)


def relative_errors(curve: Curve) -> dict[int, float]:
    """What a block loses at each of its levels: 0 when whole, 1 without any unit."""
    whole = float(curve.error[-1])
    return {level: float(curve.error[curve.count - level]) / whole if whole else 0.0 for level in curve.levels}
