"""Euclidean projection of keep probabilities onto the budget (methods, section 3)."""

from collections.abc import Callable

import torch
from torch import Tensor

from policyprune.pruning.budget.budget import Budget

ITERATIONS = 60
PARTS = 8  # of an interval, whose inner edges are tried together: few kernels for a GPU to start
ROUNDS = 12  # to 8^-12 = 2^-36 of the first interval


def project(z: Tensor, budget: Budget, mode: str, hold_gates: bool = False) -> Tensor:
    """The nearest s to z (n,) with 0 <= s <= 1 and, in each segment, cost at most (`cap`) or exactly the limit.

    s = clamp(z - v c, 0, 1) with one multiplier v per segment, found by dividing intervals in float64 for all segments
    at once, without leaving the device. A limit beyond what the segment can cost is taken as that. Returns z's dtype.

    Where costs do not add up (gates, fixed costs) the same v is taken off all of a segment's probabilities, found by
    bisection on the bound of the expected cost (`Budget.spent_in`): nearest in the norm that weighs a probability's
    displacement by its cost, so that a gate, which is dear, moves no further than a unit. Gates move by the mean of v
    over the segments; with `hold_gates` they stay where they are.
    """
    if not budget.linear:
        return _shifted(z, budget, mode, hold_gates)
    x, c = budget.in_lanes(z.double()), budget.in_lanes(budget.cost)  # (S, longest)
    real = c > 0
    scale = torch.where(real.any(1), c.amax(1), 1.0)
    c, limit = c / scale[:, None], budget.limit / scale
    low = torch.where(real, (x - 1) / c, torch.inf).amin(1)
    high = torch.where(real, x / c, -torch.inf).amax(1)
    if mode == "cap":
        low, high = low.clamp(min=0), high.clamp(min=0)

    def spent(v: Tensor) -> Tensor:
        """Cost of each segment at multipliers (S, k): (S, k)."""
        return (x[:, None].addcmul(v[..., None], c[:, None], value=-1).clamp_(0, 1) @ c[..., None]).squeeze(-1)

    inner = torch.arange(1, PARTS, dtype=x.dtype, device=x.device) / PARTS
    for _ in range(ROUNDS):
        edges = torch.cat([low[:, None], torch.lerp(low[:, None], high[:, None], inner), high[:, None]], 1)
        over = (spent(edges[:, 1:-1]) > limit[:, None]).sum(1, keepdim=True)
        low, high = edges.gather(1, over)[:, 0], edges.gather(1, over + 1)[:, 0]
    if mode == "cap":  # inside the budget already: not moved at all
        zero = torch.zeros_like(high)
        high = torch.where(spent(zero[:, None])[:, 0] <= limit, zero, high)
    v = torch.where(real.any(1), high / scale, 0)  # units without cost stay where they are
    return (z.double() - v[budget.segment] * budget.cost).clamp(0, 1).to(z.dtype)


def _shifted(z: Tensor, budget: Budget, mode: str, hold_gates: bool) -> Tensor:
    x, finest, segment = z.double(), budget.finest.to(z.device), budget.segment
    lowest = torch.full_like(budget.limit, float((x - 1).min()))
    highest = torch.full_like(budget.limit, float(x.max()))
    if mode == "cap":
        lowest, highest = lowest.clamp(min=0), highest.clamp(min=0)

    def moved(v: Tensor, gates: Tensor) -> Tensor:
        return torch.where(finest, x - v[segment], gates).clamp(0, 1)

    def root(gates_at: Callable[[Tensor], Tensor]) -> Tensor:
        low, high = lowest, highest
        for _ in range(ITERATIONS):
            middle = (low + high) / 2
            over = budget.spent_in(moved(middle, gates_at(middle)), segment, len(middle)) > budget.limit
            low, high = torch.where(over, middle, low), torch.where(over, high, middle)
        inside = budget.spent_in(moved(lowest, gates_at(lowest)), segment, len(lowest)) <= budget.limit
        return torch.where(inside, lowest, high)

    gates = x
    if not hold_gates and not bool(finest.all()):
        v = root(lambda tried: x - tried.mean())
        gates = x - v.mean()
    return moved(root(lambda tried: gates), gates).to(z.dtype)
