"""The order in which query heads go: each key/value head loses one before any loses another."""

import torch
from torch import Tensor

from policyprune.pruning.second_order.elimination import Elimination, costs_of, features_of, inverted, without


@torch.no_grad()
def eliminate_in_rounds(
    matrix: Tensor, right: Tensor, width: int, groups: int, rounds: int | None = None, first_order: bool = False
) -> Elimination:
    """As `eliminate`, one unit at a time, of `groups` that have the same number of neighbouring units.

    In a round the unit that costs least goes, then of the other groups the one that costs least now, and so on until
    each has lost one. It ends after so many `rounds`, or with all units.
    """
    count = len(matrix) // width
    inverse = inverted(matrix)
    weight = inverse @ right
    left = torch.ones(groups, count // groups, dtype=torch.bool, device=matrix.device)
    order, rises = [], []
    for _ in range(count // groups if rounds is None else rounds):
        open_units = left.clone()
        for _ in range(groups):
            ranks = costs_of(inverse, weight, width)
            if first_order:
                ranks = ranks + 2 * (weight * right).view(count, -1).sum(1)
            unit = ranks.masked_fill(~open_units.flatten(), torch.inf).argmin()
            rises.append(without(inverse, weight, features_of(unit[None], width)))
            order.append(unit)
            left.view(-1)[unit] = False
            open_units[unit // left.shape[1]] = False
    none = torch.zeros(0, dtype=torch.float64)
    error = torch.cat([none.new_zeros(1), torch.stack(rises).double().cpu().cumsum(0) if rises else none])
    return Elimination(torch.stack(order).cpu() if order else none.long(), error)
