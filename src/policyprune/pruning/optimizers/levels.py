"""Search over widths: the loss of each block at a few widths, a power law between them, and a knapsack over all
blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from policyprune.config.fields import named, number
from policyprune.config.schema import Config, Optimizer
from policyprune.errors import UsageError
from policyprune.pruning.optimizers.problem import FORGETFUL, Found, Problem, Report, State

if TYPE_CHECKING:
    from torch import Tensor

    from policyprune.pruning.optimizers.widths import Widths


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
    rounds: int = number(1, at_least=0, help="of measuring again what a level more or less of each block costs")
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
        with one level more and one less, all others as allocated; its curve is scaled so that it predicts this
        difference, and the sum is minimised again, as long as the loss falls.
        """
        search = _Search(problem, self, report, state)
        mask = search.allocate()
        if self.rounds:
            mask = search.refine(mask)
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
        self._taken = self.forwards = 0

    def loss(self, counts: list[int]) -> float:
        """Loss with so many units of each block."""
        import torch

        self.forwards += 1
        self._taken += 1
        if self._taken <= len(self._known):
            return self._known[self._taken - 1]
        mask = self.widths.mask(counts)
        losses = self._problem.losses([(mask[None].float().to(self._device), self._rows)])[0]
        loss = float(losses.double().mean())
        self._known.append(loss)
        keep = float(mask.double().mean())
        self._report({"step": self._taken, "forwards": self.forwards, "loss": loss, "keep": keep})
        self._state.save(lambda: {"losses": torch.tensor(self._known, dtype=torch.float64)})
        return loss

    def allocate(self) -> Tensor:
        """The mask (n,) of the measured losses of single blocks."""
        whole = self.widths.whole
        base = self.loss(whole)
        for index, curve in enumerate(self.widths.curves):
            for count in curve.at(self._options.widths):
                counts = [*whole[:index], count, *whole[index + 1 :]]
                curve.measured[count] = max(self.loss(counts) - base, 0.0)
        self._counts = self.widths.allocate()
        return self.widths.mask(self._counts)

    def refine(self, mask: Tensor) -> Tensor:
        """The mask (n,) after rounds of measuring at the allocation that has the least loss so far."""
        counts = self._counts
        least = self.loss(counts)
        for _ in range(self._options.rounds):
            factors = []
            for index, curve in enumerate(self.widths.curves):
                below, above = curve.beside(counts[index])
                rise = self.loss([*counts[:index], below, *counts[index + 1 :]]) - least if below is not None else None
                gain = least - self.loss([*counts[:index], above, *counts[index + 1 :]]) if above is not None else None
                factors.append(curve.factor(counts[index], rise, gain))
            tried = self.widths.allocate(factors)
            loss = self.loss(tried)
            if not loss < least:
                break
            counts, least = tried, loss
        return self.widths.mask(counts)
