"""Least squares of a small block whose features stand in for each other."""

import torch
from torch import Tensor

from policyprune.pruning.second_order.least_squares import LeastSquares


def problem(width: int, count: int, seed: int, tokens: int = 60) -> LeastSquares:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width * count, width * count, generator=generator)
    x = torch.randn(tokens, width * count, generator=generator) @ mixing  # features that stand in for each other
    weight = torch.randn(5, width * count, generator=generator)
    squares = LeastSquares.of(weight)
    squares.add(x, x @ weight.T + torch.randn(tokens, 5, generator=generator))
    return squares


def objective(squares: LeastSquares, ridge: float, kept: Tensor) -> float:
    """||X V' - Y||^2 + r ||V - W||^2 at the best weights of the features `kept`."""
    amount = ridge * float(squares.gram.diagonal().mean())
    best = torch.zeros_like(squares.weight)
    if len(kept):
        solved = squares.solve(ridge, kept)
        assert solved is not None
        best[:, kept] = solved
    return squares.error(best) + amount * float((best - squares.weight).square().sum())
