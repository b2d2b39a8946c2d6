"""Importance scores, and the initial keep probabilities that they become (methods, section 3)."""

import torch
from torch import Tensor

from policyprune.config.schema import Importance
from policyprune.errors import RunError
from policyprune.pruning.budget.budget import Budget
from policyprune.pruning.budget.projection import project
from policyprune.pruning.budget.selection import select
from policyprune.pruning.importance.evidence import Evidence
from policyprune.pruning.space import GATES, Space

DOUBT = 0.1


def scores_of(importance: Importance, evidence: Evidence) -> Tensor:
    """Scores (n,) of the units; RunError where some are NaN or infinite, which no order of units can be made of."""
    scores: Tensor = importance.score(evidence)
    wrong = (~scores.isfinite()).nonzero().flatten().tolist()
    if wrong:
        group = evidence.space.groups[int(evidence.space.group_of[wrong[0]])]
        where = f"the {group.kind} of layer {group.layer}" if group.layer >= 0 else f"the {group.kind} channels"
        raise RunError(
            f"importance: {importance.name} gives {len(wrong)} of {len(scores)} units a score that is NaN or infinite, "
            f"the first in {where}; weights or gradients overflow, try model.dtype=float32 model.search_dtype=float32"
        )
    return scores


def initial_probabilities(scores: Tensor, space: Space, budget: Budget, config: Importance) -> Tensor:
    """Map scores (n,) to keep probabilities (n,) float32 that spend the budget.

    `sigmoid_norm`: sigmoid of the standardised score; `norm`: score between minimum and maximum; both shifted onto the
    budget. `score_const`: `confidence` for the units that the score keeps, 1 - confidence for the others.
    Standardised within each block (`per_layer`) or over all blocks of a kind (`global`, and always for whole blocks and
    layers). A gate begins between 1 - `DOUBT` and 1, so that units carry the budget until the search finds out.
    """
    if config.mapping == "score_const":
        kept = select(scores, budget).to(scores.device)
        return torch.where(kept, config.confidence, 1 - config.confidence).float()
    index = space.group_of
    kinds = sorted({group.kind for group in space.groups})
    together = [config.normalize == "global" or group.kind in GATES for group in space.groups]
    classes = [
        kinds.index(g.kind) if t else len(kinds) + i
        for i, (g, t) in enumerate(zip(space.groups, together, strict=True))
    ]
    index = torch.tensor(classes).unique(return_inverse=True)[1][index]
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
    mapped = torch.where(space.finest.to(mapped.device), mapped, 1 - DOUBT * (1 - mapped))
    return project(mapped, budget, "equality", hold_gates=True).float()
