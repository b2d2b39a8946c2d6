"""Descent by back-propagation through sampled masks: what it estimates, what it holds, and optima that are known."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from policyprune.pruning.budget.budget import Budget, make_budget
from policyprune.pruning.optimizers.problem import Found, Problem
from policyprune.pruning.optimizers.straight_through import StraightThrough, direction, slopes
from policyprune.pruning.space import space_of

CONFIG = StraightThrough(
    steps=60,
    batch_size=4,
    backward_batch=3,
    learning_rate=0.1,
    attention_rate=1,
    momentum=0.5,
    confidence=0.8,
)
WORTH = torch.tensor([0.1, 0.9, 0.2, 0.6, 0.1, 0.8, 0.3, 0.7, 0.6, 0.2, 0.9, 0.0])
HEADS = torch.tensor([0, 1, 6, 7])


def evaluate(masks: Tensor, rows: Tensor) -> Tensor:
    """A loss whose slopes depend on the mask a little."""
    return (1 - masks) @ WORTH + ((1 - masks) @ WORTH) ** 2 / 50 + (rows % 5)


@pytest.fixture
def problem(small_problem: Any) -> Problem:
    found: Problem = small_problem(evaluate, 1 - WORTH)
    return found


@torch.no_grad()
def run(problem: Problem, **changes: Any) -> tuple[Found, list[dict[str, Any]]]:
    reports: list[dict[str, Any]] = []
    return replace(CONFIG, **changes).search(problem, reports.append), reports


def test_it_finds_the_best_units_from_the_worst_mask(problem: Problem) -> None:
    found, reports = run(problem)
    kept = set(found.mask.nonzero().flatten().tolist())
    assert kept & set(HEADS.tolist()) == {1, 7}
    assert kept - set(HEADS.tolist()) == {3, 5, 8, 10}
    assert found.forwards == found.backwards == len(reports) == CONFIG.steps
    assert reports[-1]["loss"] < reports[0]["loss"]
    assert all(abs(float(row["keep"]) - 0.5) < 1e-6 for row in reports)


def test_held_heads_stay_as_the_scores_have_them(problem: Problem) -> None:
    found, _ = run(problem, attention_rate=0)
    kept = set(found.mask.nonzero().flatten().tolist())
    assert kept & set(HEADS.tolist()) == {0, 6}  # the worst, which the scores take for the best
    assert kept - set(HEADS.tolist()) == {3, 5, 8, 10}
    assert set(found.probabilities[HEADS].tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("attention_rate", [0, 1])
def test_one_limit_for_heads_and_channels_is_held(
    attention_rate: float, synthetic_adapter: Any, budget_options: Any, problem: Problem
) -> None:
    adapter = synthetic_adapter([(2, 4), (2, 4)])
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(budget_options("params", 0.5), adapter, space)
    tried: list[Tensor] = []
    importance = 1 - WORTH
    importance[[0, 6]] = 1000  # two heads, which leave room for four channels

    def noted(masks: Tensor, rows: Tensor) -> Tensor:
        tried.append(masks.detach())
        return evaluate(masks, rows)

    found, _ = run(
        replace(problem, evaluate=noted, space=space, budget=budget, importance=importance),
        attention_rate=attention_rate,
    )
    assert (budget.spent(found.mask) <= budget.pool_limit).all()
    spent = torch.stack([budget.spent(row.double()) for masks in tried for row in masks]).mean()
    assert float(spent) == pytest.approx(float(budget.pool_limit), rel=0.05)
    assert float(budget.spent(found.probabilities)) == pytest.approx(float(budget.pool_limit), rel=1e-5)


@pytest.mark.parametrize(("keep", "share"), [(0.5, 1.0), (0.8, 1.0), (0.9, 0.5), (0.95, 0.25)])
def test_the_rate_is_smaller_where_little_is_pruned(keep: float, share: float, problem: Problem) -> None:
    _, reports = run(replace(problem, budget=problem.budget.relaxed(keep)), steps=1)
    assert reports[0]["learning_rate"] == pytest.approx(share * CONFIG.learning_rate)


def test_the_seed_decides(problem: Problem) -> None:
    first, second, other = (run(own, steps=5)[0] for own in (problem, problem, replace(problem, seed=4)))
    assert torch.equal(first.probabilities, second.probabilities)
    assert not torch.equal(first.probabilities, other.probabilities)


def test_slopes_are_means_whatever_is_back_propagated_at_a_time(problem: Problem) -> None:
    """Of gradients of length 1, over the units that move."""
    moves = torch.ones(12, dtype=torch.bool)
    moves[HEADS] = False

    def curved(masks: Tensor, rows: Tensor) -> Tensor:
        return ((masks @ WORTH) ** 2 + masks[:, 2] * rows) / 2

    masks, rows = (torch.rand(5, 12) < 0.5).float(), torch.arange(5)
    gradients = (masks @ WORTH)[:, None] * WORTH
    gradients[:, 2] += rows / 2
    gradients[:, HEADS] = 0
    expected = (gradients / gradients.norm(dim=1, keepdim=True)).mean(0)
    for size in (1, 2, 5):
        losses, gradient = slopes(replace(problem, evaluate=curved), masks, rows, size, moves)
        torch.testing.assert_close(gradient, expected)
        torch.testing.assert_close(losses, curved(masks, rows))


def test_a_broken_sequence_has_no_more_say_than_others(problem: Problem) -> None:
    """One in five has slopes a thousand times as large, at random."""
    chance = torch.Generator().manual_seed(0)

    def spiking(masks: Tensor, rows: Tensor) -> Tensor:
        noise = 1000 * torch.randn(12, generator=chance)
        return evaluate(masks, rows) + (rows % 5 == 0) * (masks @ noise)

    found, _ = run(replace(problem, evaluate=spiking), attention_rate=0)
    assert set(found.mask.nonzero().flatten().tolist()) - set(HEADS.tolist()) == {3, 5, 8, 10}


def test_slopes_of_nothing_are_none(problem: Problem) -> None:
    flat = replace(problem, evaluate=lambda masks, rows: 0 * masks.sum(1))
    _, gradient = slopes(flat, torch.ones(3, 12), torch.arange(3), 2, torch.ones(12, dtype=torch.bool))
    assert torch.equal(gradient, torch.zeros(12))


@given(values=st.lists(st.integers(-50, 50), min_size=12, max_size=12), cost=st.floats(0.1, 9))
def test_a_direction_has_no_part_in_what_all_units_share(values: list[int], cost: float) -> None:
    kinds = torch.tensor([0, 0, 1, 1, 1, 1] * 2)
    costs = torch.where(kinds == 0, cost, 1.0).double()
    limit = torch.zeros(2, dtype=torch.float64).index_add(0, kinds, costs) / 2
    budget = Budget(cost=costs, segment=kinds, limit=limit, pool=kinds, pool_limit=limit, keep=0.5)
    gradient = torch.tensor(values, dtype=torch.float64)
    everything = torch.ones(12, dtype=torch.bool)
    found = direction(gradient, budget, everything)
    torch.testing.assert_close(found, direction(3 * gradient + 7 * costs, budget, everything), rtol=1e-5, atol=1e-5)
    for kind in (0, 1):
        own = found[kinds == kind]
        assert float(own.square().mean()) == pytest.approx(1, abs=1e-6) or float(own.abs().max()) < 1e-6


def test_a_loss_that_is_no_number_moves_nothing(problem: Problem) -> None:
    broken = replace(problem, evaluate=lambda masks, rows: evaluate(masks, rows) * torch.nan)
    found, reports = run(broken, steps=3)
    assert all(float(row["skipped"]) == 1 for row in reports)
    assert found.probabilities.isfinite().all()


def test_held_units_have_no_part_in_the_direction() -> None:
    zero = torch.zeros(12, dtype=torch.long)
    limit = torch.tensor([6.0], dtype=torch.float64)
    cost = torch.linspace(1, 3, 12, dtype=torch.float64)
    budget = Budget(cost=cost, segment=zero, limit=limit, pool=zero, pool_limit=limit, keep=0.5)
    moves = torch.ones(12, dtype=torch.bool)
    moves[HEADS] = False
    gradient = torch.randn(12, dtype=torch.float64)
    other = torch.where(moves, gradient, 1e6)
    found = direction(gradient, budget, moves)
    torch.testing.assert_close(found, direction(other, budget, moves))
    assert not found[HEADS].any()
    assert float(found[moves].square().mean()) == pytest.approx(1)
    nothing = direction(gradient, budget, torch.zeros(12, dtype=torch.bool))
    assert torch.equal(nothing, torch.zeros_like(nothing))
