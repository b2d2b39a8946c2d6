"""Exchanges of units: the error never rises, and on small blocks they come near to the best choice of all."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from block_problems import objective, problem
from policyprune.pruning.second_order.elimination import best_units, features_of
from policyprune.pruning.second_order.exchange import exchange

SIZES = [(1, 8), (2, 6), (3, 5)]  # features of a unit, units
sizes = st.sampled_from(SIZES)


@given(size=sizes, seed=st.integers(0, 1000), kept=st.integers(1, 7), together=st.integers(1, 4))
def test_the_error_never_rises_and_falls_with_every_exchange_that_counts(
    size: tuple[int, int], seed: int, kept: int, together: int
) -> None:
    width, count = size
    squares = problem(width, count, seed)
    start = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: min(kept, count - 1)]
    before = objective(squares, 0.1, features_of(start.sort().values, width))
    for rounds in range(4):
        found, helped = exchange(*squares.damped(0.1), width, start, together, rounds)
        assert found.tolist() == sorted(set(found.tolist()))
        assert len(found) == len(start)
        assert helped <= rounds
        after = objective(squares, 0.1, features_of(found, width))
        assert after < before if helped else sorted(start.tolist()) == found.tolist()


def test_most_small_blocks_get_the_best_units_of_all() -> None:
    """More of them than by elimination alone, and no block gets worse ones."""
    greedy = exchanged = 0
    cases = [(width, count, seed) for width, count in SIZES for seed in range(20)]
    for width, count, seed in cases:
        squares = problem(width, count, seed)
        matrix, right = squares.damped(0.05)
        start = best_units(matrix.clone(), right, width, count // 2)
        found, _ = exchange(matrix, right, width, start, together=2, rounds=20)
        every = itertools.combinations(range(count), count // 2)
        tried = [start, found, *(torch.tensor(units) for units in every)]
        before, after, *errors = [objective(squares, 0.05, features_of(units, width)) for units in tried]
        best = min(errors) * (1 + 1e-9)
        assert after <= before
        greedy += before <= best
        exchanged += after <= best
    assert exchanged > greedy
    assert exchanged > 0.8 * len(cases)


def test_a_single_exchange_is_found_where_it_is_the_best() -> None:
    """A bad start, one unit away from the best choice."""
    squares = problem(1, 10, 3)
    matrix, right = squares.damped(0.1)
    best = min(
        (torch.tensor(units) for units in itertools.combinations(range(10), 5)),
        key=lambda units: objective(squares, 0.1, units),
    )
    others = [unit for unit in range(10) if unit not in best.tolist()]
    worse = torch.cat([best[1:], torch.tensor(others[:1])])
    assert exchange(matrix, right, 1, worse, 1, 5)[0].tolist() == best.tolist()


def test_nothing_removed_or_no_rounds_is_no_exchange() -> None:
    matrix, right = problem(2, 5, 0).damped(0.1)
    assert exchange(matrix, right, 2, torch.arange(5), 3, 9)[0].tolist() == list(range(5))
    assert exchange(matrix, right, 2, torch.tensor([3, 1]), 3, 0)[0].tolist() == [1, 3]
