"""Search over widths: the loss of each block at a few widths, a power law between them, and a knapsack over all
blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from policyprune.config.fields import named, number
from policyprune.config.schema import Config, Optimizer
from policyprune.errors import RunError, UsageError
from policyprune.pruning.optimizers.problem import FORGETFUL, Found, Problem, Report, State

if TYPE_CHECKING:
    from policyprune.pruning.optimizers.widths import Widths

TRIES = 4  # of an exchange, each time of fewer levels
WORST = 1e6  # stands for a loss that is NaN or infinite


@dataclass(kw_only=True)
class Levels(Optimizer):
    """Widths of blocks by the measured divergence of each block alone; which units go is the importance's order.

    Masks are tried with the least-squares weights of the units that they keep, and judged by the divergence from the
    dense model.
    """

    name: str = named("levels")
    widths: list[float] = number(
        [0.75, 0.5, 0.25], above=0, below=1, help="shares of a block's units at which its loss is measured"
    )
    sequences: int = number(16, at_least=1, help="calibration sequences on which losses are measured")
    rounds: int = number(0, at_least=0, help="of measuring again what a level more or less of each block costs")
    levels: int = number(24, at_least=2, help="widths of a block to choose from, at most")

    imitates: ClassVar[bool] = True
    refits: ClassVar[bool] = True
    handles_nested: ClassVar[bool] = False
    handles_hidden: ClassVar[bool] = False

    @property
    def sliced(self) -> bool:
        """Always: what a mask prunes is left out."""
        return True

    def check(self, config: Config) -> None:
        """Widths can be chosen only where a budget leaves them open."""
        if config.budget.scope != "global":
            raise UsageError(
                f"optimizer: levels chooses the widths of blocks, budget.scope={config.budget.scope} has chosen them; "
                "use optimizer=one_shot or budget.scope=global"
            )

    def search(self, problem: Problem, report: Report, state: State = FORGETFUL) -> Found:
        """Measure, allocate, and measure again around what was allocated.

        The loss of the model with one block at a width, all others whole, is taken at `widths`. Between them it is
        a power of the importance's error. The sum over blocks is minimised under the budget. Then each block is tried
        with one level more and one less, all others as allocated, and levels are exchanged as long as the loss falls.
        """
        search = _Search(problem, self, report, state)
        counts = search.refine(search.allocate())
        mask = search.widths.mask(counts)
        return Found(mask, mask.float(), search.forwards)


class _Search:
    """What was measured, in order; a search that goes on takes from it what it would measure."""

    def __init__(self, problem: Problem, options: Levels, report: Report, state: State) -> None:
        import torch

        from policyprune.pruning.optimizers.widths import Widths

        self._problem, self._options, self._report, self._state = problem, options, report, state
        self._device = problem.start.device
        budget = problem.budget.to(torch.device("cpu"))
        self.widths: Widths = Widths.of(problem.space, problem.importance.detach().cpu(), budget, options.levels)
        generator = torch.Generator().manual_seed(problem.seed)
        count = min(options.sequences, problem.sequences)
        self._rows = torch.randperm(problem.sequences, generator=generator)[:count]
        self._known: list[float] = list((state.load() or {}).get("losses", []))
        self.forwards = 0

    def loss(self, counts: list[int]) -> float:
        """Loss with so many units of each block."""
        import torch

        self.forwards += 1
        if self.forwards <= len(self._known):
            return self._known[self.forwards - 1]
        mask = self.widths.mask(counts)
        losses = self._problem.losses([(mask[None].float().to(self._device), self._rows)])[0]
        loss = float(losses.double().mean())
        skipped = not math.isfinite(loss)
        if skipped and mask.all():
            raise RunError("the divergence of the dense model from itself is not a number, its weights are broken")
        loss = WORST if skipped else loss
        self._known.append(loss)
        self._report(
            {
                "step": self.forwards,
                "forwards": self.forwards,
                "loss": loss,
                "skipped": float(skipped),
                "keep": float(mask.double().mean()),
            }
        )
        self._state.save(lambda: {"losses": torch.tensor(self._known, dtype=torch.float64)})
        return loss

    def allocate(self) -> list[int]:
        """Widths by the measured losses of single blocks."""
        whole = self.widths.whole
        base = self.loss(whole)
        for index, curve in enumerate(self.widths.curves):
            for count in curve.at(self._options.widths):
                loss = self.loss([*whole[:index], count, *whole[index + 1 :]])
                curve.measured[count] = max(loss - base, 0.0)
        return self.widths.allocate([dict(zip(c.levels, c.losses().tolist(), strict=True)) for c in self.widths.curves])

    def refine(self, counts: list[int]) -> list[int]:
        """Widths after rounds of exchanges of levels between blocks, by what one more or less costs at these widths.

        The exchange that promises most is tried first; while it does not lower the loss, a change has to promise more.
        """
        least = self.loss(counts)
        for _ in range(self._options.rounds):
            changes = []
            for index, curve in enumerate(self.widths.curves):
                others = [width for width in curve.beside(counts[index]) if width is not None]
                losses = {width: self.loss([*counts[:index], width, *counts[index + 1 :]]) for width in others}
                changes.append({width: loss - least for width, loss in losses.items()})
            found, threshold = counts, 0.0
            for _ in range(TRIES):
                choices = [
                    {own: 0.0} | {width: change + threshold for width, change in of_block.items()}
                    for own, of_block in zip(counts, changes, strict=True)
                ]
                tried = self.widths.allocate(choices)
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
