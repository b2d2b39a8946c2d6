"""The optimal brain surgeon for a block: the order in which its units go, and the least-squares error after each."""

from dataclasses import dataclass

import torch
from torch import Tensor

from policyprune.errors import RunError
from policyprune.pruning.second_order.least_squares import cholesky, part_of, rows_of_a_piece

COMPACT = 256  # features that are gone before the matrices are made smaller


@dataclass(frozen=True)
class Elimination:
    """The units (k,) int64 of a block in the order in which they go, and the rise of the error (k + 1,) float64.

    `error[j]` is how much ||X V' - Y||^2 + r ||V - W||^2 is above that of all units when the first j are gone and the
    rest have their best weights. Of units that go together each has a share of what they cost, by what it costs alone.
    """

    order: Tensor
    error: Tensor


@torch.no_grad()
def eliminate(
    matrix: Tensor, right: Tensor, width: int, together: int = 1, most: int | None = None, first_order: bool = False
) -> Elimination:
    """Take away unit after unit, always the one whose loss costs least now that the earlier ones are gone.

    `matrix` H (F, F) and `right` G (F, d) are those of `LeastSquares.damped`; H is overwritten. Unit u has the features
    [u * width, (u + 1) * width). With V' = H^-1 G, removing the features g costs tr(V_g ([H^-1]_gg)^-1 V_g'); after it
    H^-1 and V are those of the features that are left (Hassibi and Stork 1993; Kurtic et al. 2023, ZipLM). `together`
    units go at a time, those that cost least one by one; with `first_order` those with the least cost + 2 tr(V_g G_g')
    (Li et al. 2025, Tyr-the-Pruner). It ends with `most` units, or with all. In the data type of `matrix`. RunError
    where that is not positive definite.
    """
    count = len(matrix) // width
    most = count if most is None else min(most, count)
    inverse = inverted(matrix)
    weight = inverse @ right
    names = torch.arange(count, device=matrix.device)
    gone = torch.zeros(count, dtype=torch.bool, device=matrix.device)
    order: list[Tensor] = []
    steps: list[Tensor] = []
    removed = 0
    while removed < most:
        costs = costs_of(inverse, weight, width)
        ranks = costs + 2 * (weight * right).view(len(costs), -1).sum(1) if first_order else costs
        picked = ranks.masked_fill(gone, torch.inf).topk(min(together, most - removed), largest=False).indices
        total, alone = without(inverse, weight, features_of(picked, width)), costs[picked]
        steps.append(total * alone / alone.sum() if bool(alone.sum() > 0) else torch.zeros_like(alone))
        gone[picked] = True
        order.append(names[picked])
        removed += len(picked)
        if removed < most and int(gone.sum()) * width >= COMPACT:
            left = (~gone).nonzero().flatten()
            features = features_of(left, width)
            inverse, weight = compacted(inverse, features), weight[features]
            right = right[features] if first_order else right
            names, gone = names[left], gone[left]
    rises = torch.cat(steps).double().cpu() if steps else torch.zeros(0, dtype=torch.float64)
    error = torch.cat([rises.new_zeros(1), rises.cumsum(0)])
    return Elimination(torch.cat(order).cpu() if order else torch.zeros(0, dtype=torch.long), error)


def best_units(
    matrix: Tensor, right: Tensor, width: int, count: int, together: int = 1, first_order: bool = False
) -> Tensor:
    """The `count` units that stay when the others go one after the other, in rising order on the CPU."""
    units = len(matrix) // width
    stays = torch.ones(units, dtype=torch.bool)
    stays[eliminate(matrix, right, width, together, units - count, first_order).order] = False
    return stays.nonzero().flatten()


def inverted(matrix: Tensor) -> Tensor:
    """The inverse of a symmetric matrix (F, F), in its place; RunError where it is not positive definite."""
    factor = cholesky(matrix)
    if factor is None:
        raise RunError("the activations of a block are NaN or infinite, its units cannot be ordered")
    return torch.cholesky_inverse(factor, out=factor)


def compacted(inverse: Tensor, features: Tensor) -> Tensor:
    """inverse[features][:, features] (k, k) in rising order, at the beginning of the memory of what `inverted` gave."""
    rows, count = inverse.T, len(features)
    return part_of(rows, features, rows.reshape(-1)[: count * count].view(count, count)).T


def features_of(units: Tensor, width: int) -> Tensor:
    """The features of units (k,): (k * width,)."""
    return (units[:, None] * width + torch.arange(width, device=units.device)).flatten()


def without(inverse: Tensor, weight: Tensor, features: Tensor) -> Tensor:
    """Take features (k,) out of an inverse (F, F) and the best weights (F, d), in place; what they cost together."""
    columns = inverse[:, features]
    factor = torch.linalg.cholesky(columns[features])
    share = torch.cholesky_solve(weight[features], factor)
    cost = (weight[features] * share).sum()
    weight -= columns @ share
    other = torch.cholesky_solve(columns.T, factor)
    size = rows_of_a_piece(inverse)
    for rows, own in zip(inverse.split(size), columns.split(size), strict=True):
        rows -= own @ other
    return cost


def costs_of(inverse: Tensor, weight: Tensor, width: int) -> Tensor:
    """What each unit costs by itself, (units,); those that are gone have no meaning."""
    if width == 1:
        return weight.square().sum(1) / inverse.diagonal().clamp(min=torch.finfo(inverse.dtype).tiny)
    count = len(inverse) // width
    blocks = inverse.view(count, width, count, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    own = weight.view(count, width, -1)
    factor, failed = torch.linalg.cholesky_ex(blocks)
    cost = (own * torch.cholesky_solve(own, factor)).sum((1, 2))
    return torch.where(failed > 0, torch.inf, cost)
