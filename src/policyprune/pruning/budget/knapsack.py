"""Multiple-choice knapsack: one level of each block, so that the values add up to the least within a limit."""

from collections.abc import Sequence

import torch
from torch import Tensor

BINS = 20_000  # into which a limit is divided where costs are no multiples of one another


def choose_levels(costs: Sequence[Tensor], values: Sequence[Tensor], limit: float) -> list[int]:
    """Index of the level of each block, by dynamic programming; costs and values are (levels,) per block.

    Costs are rounded up to `BINS` parts of the limit, so it is always met; where all are multiples of the smallest
    difference between two, and there are fewer of those in the limit, nothing is rounded. Of equal values the cheaper
    level is taken. The cheapest levels where nothing else fits.
    """
    base = [float(cost.min()) for cost in costs]
    room = limit - sum(base)
    if room <= 0:
        pairs = zip(costs, values, strict=True)
        return [int(torch.where(cost == cost.min(), value, torch.inf).argmin()) for cost, value in pairs]
    unit = _unit(costs, room)
    bins = int(room / unit + 1e-9)
    steps = [
        ((cost.double() - low) / unit - 1e-9).ceil().clamp(min=0).long() for cost, low in zip(costs, base, strict=True)
    ]
    best = torch.zeros(bins + 1, dtype=torch.float64)
    choices = []
    for step, value in zip(steps, values, strict=True):
        tried = torch.full((len(step), bins + 1), torch.inf, dtype=torch.float64)
        for level, taken in enumerate(step.tolist()):
            if taken <= bins:
                tried[level, taken:] = best[: bins + 1 - taken] + float(value[level])
        order = step.argsort(stable=True)  # cheaper first, so that it wins where values are equal
        best, place = tried[order].min(0)
        choices.append(order[place])
    left, chosen = bins, list[int]()
    for step, choice in zip(reversed(steps), reversed(choices), strict=True):
        level = int(choice[left])
        chosen.append(level)
        left -= int(step[level])
    return chosen[::-1]


def _unit(costs: Sequence[Tensor], room: float) -> float:
    """A cost of which all differences are multiples, where `room` holds at most `BINS` of it; else a part of the
    room."""
    gaps = torch.cat([(cost.double() - cost.double().min()) for cost in costs])
    gaps = gaps[gaps > 0]
    if not len(gaps):
        return room
    unit = float(gaps.min())
    exact = bool(((gaps / unit - (gaps / unit).round()).abs() < 1e-9 * (gaps / unit).clamp(min=1)).all())
    return unit if exact and room / unit <= BINS else room / BINS
