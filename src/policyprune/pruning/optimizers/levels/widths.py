"""Widths of blocks: nested masks by the order of scores, what each width loses, and the best widths in a budget."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from policyprune.pruning.budget.budget import Budget
from policyprune.pruning.budget.knapsack import choose_levels
from policyprune.pruning.budget.selection import select
from policyprune.pruning.space import Space

SHRINK = 0.9
LEAST_POWER, MOST_POWER = 0.5, 3.0  # of the error that a loss between two measurements follows


@dataclass(frozen=True)
class Curve:
    """What a block loses at each width.

    `order` (count,) are its units, those that go first in front; `error` (count + 1,) float64 is the sum of the scores
    of those that are gone. `levels` are the widths to choose from, in rising order, `measured` losses by width.
    """

    order: Tensor
    error: Tensor
    levels: list[int]
    measured: dict[int, float] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Units of the block."""
        return len(self.order)

    @property
    def step(self) -> int:
        """Units of a level."""
        return self.levels[1]

    def at(self, shares: list[float]) -> list[int]:
        """The widths, each once, that are nearest to shares of all units: not all, and none only of a single unit."""
        inner = [level for level in self.levels if 0 < level < self.count] or [0]
        nearest = {min(inner, key=lambda level: abs(level - share * self.count)) for share in shares}
        return sorted(nearest, reverse=True)

    def beside(self, width: int) -> tuple[int | None, int | None]:
        """The next smaller and the next larger level."""
        below, above = [n for n in self.levels if n < width], [n for n in self.levels if n > width]
        return (below[-1] if below else None), (above[0] if above else None)

    def losses(self) -> Tensor:
        """What is lost at each level, (levels,) float64: never less at a smaller width."""
        values = torch.tensor([self._loss(level) for level in self.levels], dtype=torch.float64)
        return values.flip(0).cummax(0).values.flip(0)

    def _loss(self, width: int) -> float:
        """By the power law between the two nearest measurements, or beyond the last."""
        if width == self.count:
            return 0.0
        tiny = 1e-12
        error = max(float(self.error[self.count - width]), tiny)
        points = sorted(
            (max(float(self.error[self.count - n]), tiny), max(loss, 1e-6)) for n, loss in self.measured.items()
        )
        if not points:
            return error
        if len(points) == 1:
            return points[0][1] * error / points[0][0]
        place = min(max(sum(error > point[0] for point in points) - 1, 0), len(points) - 2)
        (first, low), (second, high) = points[place], points[place + 1]
        power = math.log(high / low) / max(math.log(second / first), 1e-9)
        power = min(max(power, LEAST_POWER), MOST_POWER)
        near, value = min(points[place : place + 2], key=lambda point: abs(math.log(error / point[0])))
        return float(value * (error / near) ** power)


@dataclass(frozen=True)
class Widths:
    """The blocks of a space with their curves, and the budget that their widths share."""

    space: Space
    budget: Budget
    curves: list[Curve]
    known: dict[tuple[int, int], float] = field(default_factory=dict, repr=False)  # what a block costs at a width

    @staticmethod
    def of(space: Space, scores: Tensor, budget: Budget, levels: int) -> "Widths":
        """Units go in the order of their scores (n,); a block has at most so many `levels`, beside 0."""
        curves = []
        sizes = budget.chunk if budget.chunk is not None else torch.ones(space.n, dtype=torch.long)
        for (own, size), group in zip(
            zip(space.views(scores).values(), space.views(sizes).values(), strict=True), space.groups, strict=True
        ):
            order = own.argsort(stable=True)
            error = torch.cat([torch.zeros(1, dtype=torch.float64), own.double()[order].clamp(min=0).cumsum(0)])
            step = int(size[0]) * max(1, round(group.count / levels / int(size[0])))
            curves.append(Curve(order, error, sorted({*range(0, group.count + 1, step), group.count})))
        return Widths(space, budget, curves)

    def shrinking(self, levels: int) -> "Widths":
        """Other levels: every number of heads, and of channels at most `levels`, each 0.9 of the next larger one, and
        none (Kurtic et al. 2023)."""
        curves = []
        for (kind, size), curve in zip(self._kinds, self.curves, strict=True):
            count, inner = curve.count, set(range(0, curve.count, size))
            if kind == "ffn":
                inner = {min(count, round(SHRINK**place * count / size) * size) for place in range(levels)}
            curves.append(replace(curve, levels=sorted({0, *inner, count})))
        return Widths(self.space, self.budget, curves)

    @property
    def whole(self) -> list[int]:
        """The widths of the dense model."""
        return [curve.count for curve in self.curves]

    def at(self, places: Sequence[int]) -> list[int]:
        """The widths of levels, each by its place among those of its block."""
        return [curve.levels[place] for curve, place in zip(self.curves, places, strict=True)]

    def uniform(self) -> list[int]:
        """The same share of each block, as near as whole units allow; the rest where it adds most to the scores."""
        rise = torch.zeros(self.space.n, dtype=torch.float64)
        for view, curve in zip(self.space.views(rise).values(), self.curves, strict=True):
            place = torch.arange(curve.count, dtype=torch.float64)
            view[curve.order] = curve.error.diff() + 1e-9 * curve.error[-1] * place  # in the order where scores are 0
        return self._counts(select(self.budget.per_cost(rise), self.budget.per_block(self.space)))

    def fit(self, counts: Sequence[int]) -> bool:
        """Whether widths are within the budget."""
        return bool((self.budget.spent(self.mask(counts)) <= self.budget.pool_limit * (1 + 1e-9)).all())

    def exchangeable(self, giver: int, taker: int) -> int:
        """Units that may go from one block to another of the same kind: a level of the one with the smaller ones.

        0 where the blocks are not alike.
        """
        alike = self._kinds[giver] == self._kinds[taker]
        return min(self.curves[giver].step, self.curves[taker].step) if alike else 0

    @cached_property
    def _kinds(self) -> list[tuple[str, int]]:
        """Of each block its kind, and how many units are kept or dropped together."""
        chunk = self.budget.chunk if self.budget.chunk is not None else torch.ones(self.space.n, dtype=torch.long)
        sizes = self.space.views(chunk).values()
        return [(group.kind, int(own[0])) for group, own in zip(self.space.groups, sizes, strict=True)]

    def mask(self, counts: Sequence[int]) -> Tensor:
        """The mask (n,) bool of widths, one per block."""
        mask = torch.ones(self.space.n, dtype=torch.bool)
        for view, curve, count in zip(self.space.views(mask).values(), self.curves, counts, strict=True):
            view[curve.order[: curve.count - count]] = False
        return mask

    def allocate(self, choices: list[dict[int, float]]) -> list[int]:
        """Widths within the budget with the least sum of losses, of which each block has some, by width.

        What rounding to levels leaves of the budget goes to the units that would go last.
        """
        losses = [torch.tensor(list(of_block.values()), dtype=torch.float64) for of_block in choices]
        costs = [self._costs(index, list(of_block)) for index, of_block in enumerate(choices)]
        counts = self.whole
        for pool, limit in enumerate(self.budget.pool_limit.tolist()):
            blocks = (self.pools == pool).nonzero().flatten().tolist()
            chosen = choose_levels([costs[i] for i in blocks], [losses[i] for i in blocks], limit)
            for index, place in zip(blocks, chosen, strict=True):
                counts[index] = list(choices[index])[place]
        return self.filled(counts)

    @cached_property
    def pools(self) -> Tensor:
        """Of each block the pool of the budget, (blocks,) int64."""
        return torch.stack([view[0] for view in self.space.views(self.budget.pool).values()])

    @property
    def costs(self) -> list[Tensor]:
        """What each block costs at its levels, the others left out, (levels,) float64; shared costs are its own."""
        return [self._costs(index, curve.levels) for index, curve in enumerate(self.curves)]

    def _costs(self, index: int, widths: list[int]) -> Tensor:
        """The same at some widths of one block."""
        nothing, pool = [0] * len(self.curves), int(self.pools[index])
        for width in widths:
            if (index, width) not in self.known:
                mask = self.mask([*nothing[:index], width, *nothing[index + 1 :]])
                self.known[index, width] = float(self.budget.spent(mask)[pool])
        return torch.tensor([self.known[index, width] for width in widths], dtype=torch.float64)

    def filled(self, counts: Sequence[int]) -> list[int]:
        """The widths after a selection by place in the order: it meets the budget and leaves no more than has to be."""
        place = torch.zeros(self.space.n, dtype=torch.float64)
        for view, curve, count in zip(self.space.views(place).values(), self.curves, counts, strict=True):
            beyond = torch.arange(curve.count, dtype=torch.float64) - (curve.count - count)  # below 0: is to go
            view[curve.order] = torch.where(beyond < 0, beyond / curve.count, 1 + beyond / curve.count)
        return self._counts(select(place, self.budget))

    def _counts(self, mask: Tensor) -> list[int]:
        return [int(view.sum()) for view in self.space.views(mask).values()]
