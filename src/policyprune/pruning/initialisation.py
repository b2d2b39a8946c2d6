"""From a metric to initial keep probabilities (methods, section 3)."""

import torch
from torch import Tensor

from policyprune.config.schema import Importance
from policyprune.pruning.budget import Budget
from policyprune.pruning.projection import project
from policyprune.pruning.selection import select
from policyprune.pruning.space import Space


def initial_probabilities(scores: Tensor, space: Space, budget: Budget, config: Importance) -> Tensor:
    """Map metric scores (n,) to keep probabilities (n,) float32 that spend the budget.

    `sigmoid_norm`: sigmoid of the standardised score; `norm`: score between minimum and maximum; both shifted onto the
    budget. `score_const`: `confidence` for the units that the metric keeps, 1 - confidence for the others.
    Standardised within each block (`per_layer`) or over all blocks of a kind (`global`).
    """
    if config.mapping == "score_const":
        kept = select(scores, budget).to(scores.device)
        return torch.where(kept, config.confidence, 1 - config.confidence).float()
    index = space.group_of
    if config.normalize == "global":
        kinds = sorted({group.kind for group in space.groups})
        index = torch.tensor([kinds.index(group.kind) for group in space.groups])[index]
    index, x = index.to(scores.device), scores.double()
    count = int(index.max()) + 1
    if config.mapping == "norm":
        low = torch.full((count,), torch.inf, dtype=x.dtype, device=x.device).scatter_reduce(0, index, x, "amin")
        high = torch.full_like(low, -torch.inf).scatter_reduce(0, index, x, "amax")
        mapped = torch.where((high > low)[index], (x - low[index]) / (high - low)[index], 0.5)
    else:
        sizes = torch.bincount(index, minlength=count)
        zeros = torch.zeros(count, dtype=x.dtype, device=x.device)
        mean = zeros.index_add(0, index, x) / sizes
        deviation = (zeros.index_add(0, index, (x - mean[index]) ** 2) / sizes).sqrt()
        mapped = torch.sigmoid((x - mean[index]) / deviation.clamp(min=1e-12)[index])
    return project(mapped, budget, "equality").float()
