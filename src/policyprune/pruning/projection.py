"""Euclidean projection of keep probabilities onto the budget (methods, section 3)."""

import torch
from torch import Tensor

from policyprune.pruning.budget import Budget

ITERATIONS = 60


def project(z: Tensor, budget: Budget, mode: str) -> Tensor:
    """The nearest s to z (n,) with 0 <= s <= 1 and, in each segment, cost at most (`cap`) or exactly the limit.

    s = clamp(z - v c, 0, 1) with one multiplier v per segment, found by bisection in float64 for all segments at
    once, without leaving the device. A limit beyond what the segment can cost is taken as that. Returns z's dtype.
    """
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
