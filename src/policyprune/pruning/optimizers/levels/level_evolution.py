"""Evolutionary search over widths: levels are exchanged between blocks of a kind (EvoPress, Tyr-the-Pruner)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from policyprune.config.fields import named, number
from policyprune.config.schema import Config
from policyprune.errors import UsageError
from policyprune.pruning.optimizers.levels.level_search import LevelSearch, Losses
from policyprune.pruning.optimizers.problem import FORGETFUL, Found, Problem, Report, State

if TYPE_CHECKING:
    import torch

    from policyprune.pruning.optimizers.levels.widths import Widths

TRIES = 20  # of a mutation that gives what is there already


@dataclass(kw_only=True)
class LevelEvolution(LevelSearch):
    """Exchanges of levels between blocks of a kind, from equal shares of all blocks on."""

    name: str = named("level_evolution")
    steps: int = number(50, at_least=1, help="generations, of each round")
    rounds: int = number(
        0,
        at_least=0,
        help="each begins with statistics that are gathered anew behind layers of the widths so far, and has twice as "
        "many levels as the one before; 0: one with the statistics of the dense model",
    )
    offspring: int = number(16, at_least=1, help="allocations that a generation begins with")
    exchanges: int = number(3, at_least=1, help="of levels in a mutation, at most")
    survivors: list[int] = number([4, 2], at_least=1, help="after each selection but the last, which leaves one")
    sequences: list[int] = number([2, 8, 16], at_least=1, help="calibration sequences of each selection")

    @property
    def length(self) -> int | None:
        """Number of generations."""
        return self.steps * max(1, self.rounds)

    def check(self, config: Config) -> None:
        """Fewer and fewer are compared on more and more sequences."""
        super().check(config)
        if len(self.sequences) != len(self.survivors) + 1:
            raise UsageError(
                f"optimizer.sequences: {self.sequences} are not those of {len(self.survivors) + 1} selections, which "
                f"optimizer.survivors={self.survivors} are; give one number more than there"
            )
        if any(later <= earlier for earlier, later in pairwise(self.sequences)):
            raise UsageError(f"optimizer.sequences: {self.sequences} do not rise, give rising ones such as [2,8,16]")
        if any(later >= earlier for earlier, later in pairwise([self.offspring, *self.survivors])):
            raise UsageError(
                f"optimizer.survivors: {self.survivors} of optimizer.offspring={self.offspring} do not fall, give "
                "falling ones such as [4,2]"
            )

    def search(self, problem: Problem, report: Report, state: State = FORGETFUL) -> Found:
        """Begin with the same share of every block; return the better of it and the last parent.

        A generation mutates its parent `offspring` times. Selections on fresh sequences, more each time, leave fewer of
        them; in the last one the parent takes part, and the best of all is the next parent.
        """
        losses = Losses(problem, self.levels, report, state)
        start = parent = losses.widths.uniform()
        for step in range(self.length or 0):
            if self.rounds and step % self.steps == 0:
                losses.renew(parent, self.levels * 2 ** (step // self.steps))
            tried = children(parent, self.offspring, self.exchanges, losses.widths, losses.generator)
            skipped = 0
            for count, left in zip(self.sequences, self.survivors, strict=False):
                values = losses.of(tried, losses.draw(count))
                skipped += values.count(math.inf)
                tried = [tried[place] for place in ranked(values)[:left]]
            tried = [parent, *tried]
            values = losses.of(tried, losses.draw(self.sequences[-1]))
            skipped += values.count(math.inf)
            parent = tried[ranked(values)[0]]
            numbers = {"loss": min(values), "parent_loss": values[0], "skipped": float(skipped)}
            losses.tell({**numbers, "keep": losses.keep(parent)})
        first, last = losses.of([start, parent], losses.draw(self.sequences[-1]))
        return losses.found(parent if last < first else start)


def ranked(values: list[float]) -> list[int]:
    """Places in the order of the values; of equal ones the first."""
    return sorted(range(len(values)), key=values.__getitem__)


def children(
    parent: list[int], count: int, exchanges: int, widths: Widths, generator: torch.Generator
) -> list[list[int]]:
    """So many different mutations of a parent; fewer where there are hardly any."""
    found: list[list[int]] = []
    for _ in range(TRIES * count):
        if len(found) == count:
            break
        child = mutated(parent, exchanges, widths, generator)
        if child != parent and child not in found:
            found.append(child)
    return found


def mutated(parent: list[int], exchanges: int, widths: Widths, generator: torch.Generator) -> list[int]:
    """Widths after a few exchanges: as many as the smaller of two numbers that are drawn up to `exchanges`."""
    import torch

    counts = parent
    for _ in range(int(torch.randint(1, exchanges + 1, (2,), generator=generator).min())):
        counts = exchanged(counts, widths, generator)
    return counts


def exchanged(counts: list[int], widths: Widths, generator: torch.Generator) -> list[int]:
    """One block has a level less, another of its kind has as many units more; the same where none can."""
    import torch

    for giver in torch.randperm(len(counts), generator=generator).tolist():
        for taker in torch.randperm(len(counts), generator=generator).tolist():
            size = widths.exchangeable(giver, taker)
            if giver != taker and 0 < size <= counts[giver] and counts[taker] + size <= widths.curves[taker].count:
                tried = list(counts)
                tried[giver], tried[taker] = tried[giver] - size, tried[taker] + size
                if widths.fit(tried):
                    return tried
    return counts
