"""Exchanges of kept and removed units of a block, as long as its least-squares error falls."""

import torch
from torch import Tensor

from policyprune.pruning.second_order.elimination import costs_of, features_of, without


@torch.no_grad()
def exchange(
    matrix: Tensor, right: Tensor, width: int, kept: Tensor, together: int = 1, rounds: int = 1
) -> tuple[Tensor, int]:
    """As many kept units as `kept` (k,), in rising order, and how many exchanges lowered the error.

    `matrix` H (F, F) and `right` G (F, d) are those of `LeastSquares.damped`, positive definite. In each of the
    `rounds` the `together` kept units go that cost least, then as many come in, of those just gone and all others, that
    lower the error most, each by itself. The exchange stands where the error of the best weights falls; after one that
    does not, half as many are tried (Meng et al. 2024, OSSCAR).
    """
    best = kept.sort().values.to(matrix.device)
    explained, helped = _explained(matrix, right, width, best), 0
    size = min(together, len(best), len(matrix) // width - len(best))
    for _ in range(rounds):
        if not size:
            break
        tried = _exchanged(matrix, right, width, best, size)
        value = _explained(matrix, right, width, tried)
        if value > explained * (1 + 1e-9):
            best, explained, helped = tried, value, helped + 1
        else:
            size //= 2
    return best.to(kept.device), helped


def _explained(matrix: Tensor, right: Tensor, width: int, kept: Tensor) -> float:
    """How much of the squared target the best weights of the kept units (k,) explain: tr(G_S' (H_SS)^-1 G_S)."""
    features = features_of(kept, width)
    factor = torch.linalg.cholesky(matrix[features][:, features])
    own = right[features]
    return float((own * torch.cholesky_solve(own, factor)).sum())


def _exchanged(matrix: Tensor, right: Tensor, width: int, kept: Tensor, size: int) -> Tensor:
    features = features_of(kept, width)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix[features][:, features]))
    weight = inverse @ right[features]
    picked = costs_of(inverse, weight, width).topk(size, largest=False).indices
    without(inverse, weight, features_of(picked, width))
    stays = torch.ones(len(kept), dtype=torch.bool, device=kept.device)
    stays[picked] = False
    inside = features_of(stays.nonzero().flatten(), width)
    inverse, weight, inside = inverse[inside][:, inside], weight[inside], features[inside]
    out = torch.ones(len(matrix) // width, dtype=torch.bool, device=kept.device)
    out[kept[stays]] = False
    others = out.nonzero().flatten()
    outside = features_of(others, width)
    between = matrix[inside][:, outside]
    own = matrix[outside][:, outside] - between.T @ (inverse @ between)  # what the units that stay leave of them
    gains = costs_of(own, right[outside] - between.T @ weight, width)
    return torch.cat([kept[stays], others[gains.topk(size).indices]]).sort().values
