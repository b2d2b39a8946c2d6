"""ZipLM's widths: the knapsack against exhaustive search, the search over sensitivities, and the levels."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.optimizers.levels.spdy import SPDY, relative_errors
from policyprune.pruning.optimizers.levels.widths import Curve, Widths
from policyprune.pruning.optimizers.problem import Found, Problem
from policyprune.pruning.space import space_of

COUNTS = [(2, 6), (2, 6)]
SIZES = [2, 6, 2, 6]
FINEST = 100


@pytest.fixture(scope="module")
def problem_of(synthetic_adapter: Any, budget_options: Any) -> Any:
    adapter = synthetic_adapter(COUNTS)
    space = space_of(adapter, ["attention", "ffn"])

    def make(name: str, keep: float, scores: Tensor, evaluate: Any, align: int | None = None) -> Problem:
        budget = make_budget(budget_options(name, keep), adapter, space, align=align)
        lengths = torch.ones(20, dtype=torch.long)
        return Problem(evaluate, space, budget, scores, torch.full((16,), 0.5), lengths, seed=3)

    return make


def shares_gone(scores: Tensor, mask: Tensor) -> Tensor:
    """Of the scores of each block, (4,)."""
    lost = ((1 - mask.double()) * scores.double()).split(SIZES)
    return torch.stack([own.sum() / whole.sum() for own, whole in zip(lost, scores.double().split(SIZES), strict=True)])


def constant(masks: Tensor, rows: Tensor) -> Tensor:
    return torch.ones(len(rows))


@given(
    seed=st.integers(0, 1000),
    keep=st.sampled_from([0.4, 0.5, 0.7, 0.9]),
    name=st.sampled_from(["rate", "params", "flops"]),
)
def test_the_knapsack_finds_what_exhaustive_search_finds(seed: int, keep: float, name: str, problem_of: Any) -> None:
    """No widths at levels that fit have a smaller sum of relative errors; costs are rounded up where they are no
    multiples of one another."""
    scores = torch.rand(16, generator=torch.Generator().manual_seed(seed)).square()
    problem = problem_of(name, keep, scores, constant)
    found = SPDY(steps=0).search(problem, lambda step: None)
    widths = Widths.of(problem.space, scores, problem.budget, FINEST).shrinking(43)
    masks = [widths.mask(counts) for counts in itertools.product(*(curve.levels for curve in widths.curves))]
    room = 1.0 if name == "rate" else 0.999
    sums = [float(shares_gone(scores, mask).sum()) for mask in masks if fits(problem, mask, room)]
    assert fits(problem, found.mask)
    assert float(shares_gone(scores, found.mask).sum()) <= min(sums) + 1e-6


def fits(problem: Problem, mask: Tensor, room: float = 1.0) -> bool:
    return bool((problem.budget.spent(mask) <= problem.budget.pool_limit * room * (1 + 1e-9)).all())


def searched(problem: Problem, options: SPDY) -> tuple[Found, list[dict[str, Any]]]:
    steps: list[dict[str, Any]] = []
    return options.search(problem, steps.append), steps


def test_sensitivities_are_found_that_the_errors_do_not_say(problem_of: Any) -> None:
    """The loss minds the first layer ten times more; the search gives it more units than equal sensitivities do."""
    scores = torch.rand(16, generator=torch.Generator().manual_seed(5))

    def evaluate(masks: Tensor, rows: Tensor) -> Tensor:
        return (shares_gone(scores, masks[0]) * torch.tensor([10.0, 10.0, 1.0, 1.0])).sum().float().expand(len(rows))

    problem = problem_of("flops", 0.6, scores, evaluate)
    found, steps = searched(problem, SPDY(steps=150))
    assert len(steps) == 151
    least = [step["best_loss"] for step in steps]
    assert least == sorted(least, reverse=True)
    assert least[-1] < 0.8 * least[0]
    assert float(evaluate(found.mask.double()[None], torch.arange(1))) == pytest.approx(least[-1], rel=1e-5)
    assert found.forwards < 100  # widths that were tried are not tried again
    assert torch.equal(searched(problem, SPDY(steps=150))[0].mask, found.mask)
    plain, _ = searched(problem, SPDY(steps=0))
    assert found.mask[:8].sum() > plain.mask[:8].sum()


def test_losses_that_are_no_numbers_are_passed_over(problem_of: Any) -> None:
    scores = torch.rand(16, generator=torch.Generator().manual_seed(5))

    def broken(masks: Tensor, rows: Tensor) -> Tensor:
        loss = shares_gone(scores, masks[0]).sum().float()
        return (loss if masks[0, :2].sum() < 2 else torch.tensor(torch.nan)).expand(len(rows))

    found, steps = searched(problem_of("rate", 0.5, scores, broken), SPDY(steps=60, mutation=0.5))
    assert {step["skipped"] for step in steps} == {0.0, 1.0}
    assert found.mask[:2].sum() < 2


def test_levels_shrink_by_a_tenth_in_multiples_of_align(problem_of: Any) -> None:
    scores = torch.rand(16)
    problem = problem_of("rate", 0.5, scores, constant)
    curve = Widths.of(problem.space, scores, problem.budget, FINEST).curves[1]
    assert curve.levels == list(range(7))
    whole = Widths.of(problem.space, scores, problem.budget, FINEST)
    large = replace(curve, order=torch.arange(100), error=torch.arange(101.0), levels=list(range(101)))
    curves = replace(whole, curves=[whole.curves[0], large, *whole.curves[2:]]).shrinking(5).curves
    assert curves[1].levels == [0, 66, 73, 81, 90, 100]
    assert curves[0].levels == [0, 1, 2]
    aligned = problem_of("rate", 0.5, scores, constant, align=2)
    levels = [own.levels for own in Widths.of(aligned.space, scores, aligned.budget, FINEST).shrinking(43).curves]
    assert levels[1] == [0, 2, 4, 6]


def test_errors_are_shares_of_the_whole_block() -> None:
    scores = torch.tensor([0.5, 1.5, 2.0])
    error = torch.cat([torch.zeros(1), scores.cumsum(0)]).double()
    assert relative_errors(Curve(torch.arange(3), error, [0, 1, 3])) == {0: 1.0, 1: 0.5, 3: 0.0}
    assert relative_errors(Curve(torch.arange(3), torch.zeros(4).double(), [0, 3])) == {0: 0.0, 3: 0.0}
