"""The order in which units go, against brute force."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from block_problems import objective, problem
from policyprune.errors import RunError
from policyprune.pruning.second_order.elimination import eliminate, features_of
from policyprune.pruning.second_order.least_squares import LeastSquares

sizes = st.sampled_from([(1, 6), (1, 12), (2, 5), (3, 4)])  # features of a unit, units


@given(size=sizes, seed=st.integers(0, 1000), ridge=st.sampled_from([0.01, 0.1, 1.0]))
def test_the_error_is_what_least_squares_without_these_units_costs(
    size: tuple[int, int], seed: int, ridge: float
) -> None:
    width, count = size
    squares = problem(width, count, seed)
    found = eliminate(*squares.damped(ridge), width)
    whole = objective(squares, ridge, torch.arange(width * count))
    for gone in range(count + 1):
        kept = features_of(found.order[gone:].sort().values, width)
        expected = objective(squares, ridge, kept) - whole
        assert abs(float(found.error[gone]) - expected) <= 1e-7 * squares.energy


@given(size=sizes, seed=st.integers(0, 1000))
def test_each_unit_that_goes_is_the_one_that_costs_least(size: tuple[int, int], seed: int) -> None:
    width, count = size
    squares = problem(width, count, seed)
    found = eliminate(*squares.damped(0.1), width)
    for gone in range(count):
        left = found.order[gone:]
        rises = [objective(squares, 0.1, features_of(left[left != unit].sort().values, width)) for unit in left]
        assert rises[0] <= min(rises) * (1 + 1e-9)


@given(seed=st.integers(0, 1000), together=st.integers(2, 7), most=st.integers(1, 12))
def test_several_at_a_time_are_an_order_whose_error_is_exact_where_they_end(
    seed: int, together: int, most: int
) -> None:
    squares = problem(1, 12, seed)
    found = eliminate(*squares.damped(0.1), 1, together, most)
    assert len(found.order.unique()) == len(found.order) == most
    assert bool((found.error.diff() >= 0).all())
    whole = objective(squares, 0.1, torch.arange(12))
    for gone in {*range(0, most, together), most}:
        kept = torch.tensor([unit for unit in range(12) if unit not in found.order[:gone].tolist()], dtype=torch.long)
        expected = objective(squares, 0.1, kept) - whole
        assert abs(float(found.error[gone]) - expected) <= 1e-7 * squares.energy


def test_compacted_matrices_give_the_same_order() -> None:
    squares = problem(1, 600, 0, tokens=900)
    found = eliminate(*squares.damped(0.1), 1, together=16)
    kept = found.order[576:].sort().values
    whole = objective(squares, 0.1, torch.arange(600))
    assert abs(float(found.error[576]) / (objective(squares, 0.1, kept) - whole) - 1) < 1e-6


def test_a_block_without_activations_has_an_order_and_one_that_is_no_number_is_refused() -> None:
    squares = LeastSquares.of(torch.randn(5, 6))
    squares.add(torch.zeros(10, 6), torch.zeros(10, 5))
    assert sorted(eliminate(*squares.damped(0.1), 1).order.tolist()) == list(range(6))
    squares.gram[0, 0] = torch.nan
    with pytest.raises(RunError, match="activations of a block are NaN or infinite"):
        eliminate(*squares.damped(0.1), 1)


@given(size=sizes, seed=st.integers(0, 1000))
def test_with_the_first_order_units_go_by_cost_and_by_what_they_are_of_the_output(
    size: tuple[int, int], seed: int
) -> None:
    """Each step against direct solutions; the error stays that of least squares."""
    width, count = size
    squares = problem(width, count, seed)
    matrix, right = squares.damped(0.1)
    found = eliminate(matrix, right, width, first_order=True)
    whole = objective(squares, 0.1, torch.arange(width * count))
    for gone in range(count):
        left = found.order[gone:].sort().values
        own = features_of(left, width)
        weight, now = squares.solve(0.1, own), objective(squares, 0.1, own)
        assert weight is not None
        products = (weight.T * right[own]).reshape(len(left), -1).sum(1).tolist()
        ranks = {
            unit: objective(squares, 0.1, features_of(left[left != unit], width)) - now + 2 * product
            for unit, product in zip(left.tolist(), products, strict=True)
        }
        assert ranks[int(found.order[gone])] <= min(ranks.values()) + 1e-7 * squares.energy
        assert abs(float(found.error[gone]) - (now - whole)) <= 1e-7 * squares.energy
