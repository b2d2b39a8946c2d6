"""From a score per unit to a mask that meets the budget."""

import torch
from torch import Tensor

from policyprune.pruning.budget import Budget


def select(scores: Tensor, budget: Budget) -> Tensor:
    """Keep the best units that fit: scores (n,) -> mask (n,) bool on the CPU.

    Each segment takes its units in the order of the scores (ties: first unit first) until the next one does not fit;
    what rounding leaves in a pool goes to the best units that still fit, in a per-layer budget one more per segment at
    most. With equal costs (`rate`) a pool's limit is met exactly.
    """
    scores, budget = scores.detach().cpu().double(), budget.to(torch.device("cpu"))
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(budget.segment[order], stable=True)]  # by segment, by score inside
    cost, segment = budget.cost[order], budget.segment[order]
    running = cost.cumsum(0)
    before = torch.zeros(len(budget.limit), dtype=torch.float64).scatter_reduce(
        0, segment, running - cost, "amin", include_self=False
    )
    tolerance = 1e-9 * budget.limit.clamp(min=1)
    fits = running - before[segment] <= (budget.limit + tolerance)[segment]
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[order[fits]] = True
    left = budget.pool_limit - budget.spent(mask)
    per_layer = len(budget.limit) != len(budget.pool_limit)
    topped: set[int] = set()
    cheapest = budget.cost.min()
    for unit in torch.argsort(torch.where(mask, -torch.inf, scores), descending=True, stable=True).tolist():
        pool, own = int(budget.pool[unit]), int(budget.segment[unit])
        if not (left >= cheapest - 1e-6).any():
            break
        if mask[unit] or budget.cost[unit] > left[pool] + 1e-6 or (per_layer and own in topped):
            continue
        mask[unit] = True
        left[pool] -= budget.cost[unit]
        topped.add(own)
    return mask


def by_metric(metric: Tensor, budget: Budget, per_cost: bool) -> Tensor:
    """The one-shot mask (n,) of a metric (n,): the units with the highest metric, per cost or as it is, that fit."""
    metric, budget = metric.detach().cpu().double(), budget.to(torch.device("cpu"))
    return select(metric / budget.cost if per_cost else metric, budget)
