"""Euclidean projection of keep probabilities onto the budget (methods, section 3)."""

from collections.abc import Callable

import torch
from torch import Tensor

from policyprune.pruning.budget import Budget

ITERATIONS = 60


def project(z: Tensor, budget: Budget, mode: str, hold_gates: bool = False) -> Tensor:
    """The nearest s to z (n,) with 0 <= s <= 1 and, in each segment, cost at most (`cap`) or exactly the limit.

    s = clamp(z - v c, 0, 1) with one multiplier v per segment, found by bisection in float64 for all segments at
    once, without leaving the device. A limit beyond what the segment can cost is taken as that. Returns z's dtype.

    Where costs do not add up (gates, openings) the same v is taken off all of a segment's probabilities, found by
    bisection on the bound of the expected cost (`Budget.spent_in`): nearest in the norm that weighs a probability's
    displacement by its cost, so that a gate, which is dear, moves no further than a unit. Gates move by the mean of v
    over the segments; with `hold_gates` they stay where they are.
    """
    if not budget.linear:
        return _shifted(z, budget, mode, hold_gates)
    c, segment = budget.cost, budget.segment
    count = len(budget.limit)
    x = z.double()
    scale = torch.zeros(count, dtype=x.dtype, device=x.device).scatter_reduce(0, segment, c, "amax")
    c = c / scale[segment]
    limit = budget.limit / scale
    lowest = torch.full_like(limit, torch.inf).scatter_reduce(0, segment, (x - 1) / c, "amin")
    highest = torch.full_like(limit, -torch.inf).scatter_reduce(0, segment, x / c, "amax")
    low, high = (lowest.clamp(min=0), highest.clamp(min=0)) if mode == "cap" else (lowest, highest)
    for _ in range(ITERATIONS):
        middle = (low + high) / 2
        spent = torch.zeros_like(limit).index_add(0, segment, c * (x - middle[segment] * c).clamp(0, 1))
        over = spent > limit
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    if mode == "cap":  # inside the budget already: not moved at all
        spent = torch.zeros_like(limit).index_add(0, segment, c * x.clamp(0, 1))
        high = torch.where(spent <= limit, torch.zeros_like(high), high)
    return (x - high[segment] * c).clamp(0, 1).to(z.dtype)


def _shifted(z: Tensor, budget: Budget, mode: str, hold_gates: bool) -> Tensor:
    x, leaf, segment = z.double(), budget.leaf.to(z.device), budget.segment
    lowest = torch.full_like(budget.limit, float((x - 1).min()))
    highest = torch.full_like(budget.limit, float(x.max()))
    if mode == "cap":
        lowest, highest = lowest.clamp(min=0), highest.clamp(min=0)

    def moved(v: Tensor, gates: Tensor) -> Tensor:
        return torch.where(leaf, x - v[segment], gates).clamp(0, 1)

    def root(gates_at: Callable[[Tensor], Tensor]) -> Tensor:
        low, high = lowest, highest
        for _ in range(ITERATIONS):
            middle = (low + high) / 2
            over = budget.spent_in(moved(middle, gates_at(middle)), segment, len(middle)) > budget.limit
            low, high = torch.where(over, middle, low), torch.where(over, high, middle)
        inside = budget.spent_in(moved(lowest, gates_at(lowest)), segment, len(lowest)) <= budget.limit
        return torch.where(inside, lowest, high)

    gates = x
    if not hold_gates and not bool(leaf.all()):
        v = root(lambda tried: x - tried.mean())
        gates = x - v.mean()
    return moved(root(lambda tried: gates), gates).to(z.dtype)
