"""The order in which query heads go, against brute force."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from policyprune.pruning.second_order.elimination import features_of
from policyprune.pruning.second_order.least_squares import LeastSquares
from policyprune.pruning.second_order.rounds import eliminate_in_rounds

WIDTH = 2


def problem(count: int, seed: int, tokens: int = 60) -> LeastSquares:
    generator = torch.Generator().manual_seed(seed)
    features = WIDTH * count
    x = torch.randn(tokens, features, generator=generator) @ torch.randn(features, features, generator=generator)
    weight = torch.randn(5, features, generator=generator)
    squares = LeastSquares.of(weight)
    squares.add(x, x @ weight.T + torch.randn(tokens, 5, generator=generator))
    return squares


def objective(squares: LeastSquares, kept: list[int]) -> float:
    """||X V' - Y||^2 + r ||V - W||^2 at the best weights of the units `kept`."""
    features: Tensor = features_of(torch.tensor(kept, dtype=torch.long), WIDTH)
    best = torch.zeros_like(squares.weight)
    if kept:
        solved = squares.solve(0.1, features)
        assert solved is not None
        best[:, features] = solved
    amount = 0.1 * float(squares.gram.diagonal().mean())
    return squares.error(best) + amount * float((best - squares.weight).square().sum())


@given(groups=st.integers(1, 4), each=st.integers(1, 4), seed=st.integers(0, 1000), most=st.integers(1, 4))
def test_groups_lose_one_unit_each_before_any_loses_another(groups: int, each: int, seed: int, most: int) -> None:
    count, rounds = groups * each, min(most, each)
    squares = problem(count, seed)
    found = eliminate_in_rounds(*squares.damped(0.1), WIDTH, groups, rounds)
    assert len(found.order) == groups * rounds
    for first in range(0, len(found.order), groups):
        assert sorted((found.order[first : first + groups] // each).tolist()) == list(range(groups))
    whole, gone = objective(squares, list(range(count))), list[int]()

    def error(unit: int) -> float:
        return objective(squares, [other for other in range(count) if other not in (*gone, unit)])

    for place, unit in enumerate(found.order.tolist()):
        served = {other // each for other in gone[place - place % groups :]}
        rivals = [other for other in range(count) if other not in gone and other // each not in served]
        assert error(unit) <= min(error(other) for other in rivals) + 1e-7 * squares.energy
        assert abs(float(found.error[place + 1]) - (error(unit) - whole)) <= 1e-7 * squares.energy
        gone.append(unit)
