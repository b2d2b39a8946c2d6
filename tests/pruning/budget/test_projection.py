"""The projection against an exact solution by breakpoints."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from policyprune.pruning.budget.budget import Budget
from policyprune.pruning.budget.projection import project

MakeBudget = Callable[..., Budget]
values = st.floats(-2, 3, allow_subnormal=False)
costs = st.floats(0.05, 20)
segments = st.lists(st.tuples(st.lists(st.tuples(values, costs), min_size=1, max_size=8), st.floats(0, 1)), min_size=1)
problems = segments.filter(lambda drawn: len(drawn) <= 3)
modes = st.sampled_from(["cap", "equality"])


def exact(z: list[float], c: list[float], limit: float, mode: str) -> list[float]:
    """One segment: the budget is piecewise linear in the multiplier, so it is solved between two breakpoints."""

    def spent(v: float) -> float:
        return sum(ci * min(1.0, max(0.0, zi - v * ci)) for zi, ci in zip(z, c, strict=True))

    points = sorted(
        {zi / ci for zi, ci in zip(z, c, strict=True)} | {(zi - 1) / ci for zi, ci in zip(z, c, strict=True)}
    )
    if mode == "cap" and spent(0.0) <= limit:
        v = 0.0
    elif limit >= spent(points[0]):
        v = points[0]
    else:
        right = next(i for i, point in enumerate(points) if spent(point) <= limit + 1e-12)
        a, b = points[right - 1], points[right]
        v = a + (b - a) * (spent(a) - limit) / (spent(a) - spent(b))
    return [min(1.0, max(0.0, zi - v * ci)) for zi, ci in zip(z, c, strict=True)]


def unpack(problem: Any, make: MakeBudget) -> tuple[Tensor, Budget]:
    z = [zi for units, _ in problem for zi, _ in units]
    c = [ci for units, _ in problem for _, ci in units]
    segment = [index for index, (units, _) in enumerate(problem) for _ in units]
    limit = [share * sum(ci for _, ci in units) for units, share in problem]
    return torch.tensor(z, dtype=torch.float64), make(torch.tensor(c), torch.tensor(segment), torch.tensor(limit))


@given(problem=problems, mode=modes)
def test_it_is_the_exact_solution(segments_budget: MakeBudget, problem: Any, mode: str) -> None:
    z, budget = unpack(problem, segments_budget)
    expected = []
    for index in range(len(budget.limit)):
        own = budget.segment == index
        expected += exact(z[own].tolist(), budget.cost[own].tolist(), budget.limit[index].item(), mode)
    torch.testing.assert_close(project(z, budget, mode).tolist(), expected, rtol=0, atol=1e-7)


@given(problem=problems, mode=modes)
def test_it_meets_the_budget_inside_the_box(segments_budget: MakeBudget, problem: Any, mode: str) -> None:
    z, budget = unpack(problem, segments_budget)
    s = project(z, budget, mode)
    spent = budget.spent(s)
    scale = budget.spent(torch.ones_like(s))
    assert ((s >= 0) & (s <= 1)).all()
    assert (spent <= budget.limit + 1e-6 * scale).all()
    if mode == "equality":
        assert (spent >= budget.limit - 1e-6 * scale).all()


@given(problem=problems, mode=modes)
def test_projecting_again_changes_nothing(segments_budget: MakeBudget, problem: Any, mode: str) -> None:
    z, budget = unpack(problem, segments_budget)
    once = project(z, budget, mode)
    torch.testing.assert_close(project(once, budget, mode), once, rtol=0, atol=1e-7)


@given(problem=problems)
def test_a_cap_moves_nothing_that_is_inside_the_budget(segments_budget: MakeBudget, problem: Any) -> None:
    z, budget = unpack(problem, segments_budget)
    z = z.clamp(0, 1)
    roomy = segments_budget(budget.cost, budget.segment, budget.spent(z) + 1e-9)
    assert torch.equal(project(z, roomy, "cap"), z)


@given(problem=problems, seed=st.integers(0, 100))
def test_no_other_point_of_the_budget_is_nearer(segments_budget: MakeBudget, problem: Any, seed: int) -> None:
    z, budget = unpack(problem, segments_budget)
    s = project(z, budget, "cap")
    others = torch.rand(50, len(z), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for other in others:
        shrink = (budget.limit / budget.spent(other)).clamp(max=1)[budget.segment]
        assert (s - z).norm() <= (other * shrink - z).norm() + 1e-7


def test_a_limit_beyond_the_segment_keeps_everything(segments_budget: MakeBudget) -> None:
    budget = segments_budget(torch.ones(4), torch.zeros(4, dtype=torch.long), torch.tensor([9.0]))
    assert project(torch.tensor([0.1, 0.2, 0.9, 2.0]), budget, "equality").tolist() == [1, 1, 1, 1]


def test_no_budget_at_all_keeps_nothing(segments_budget: MakeBudget) -> None:
    budget = segments_budget(torch.ones(3), torch.zeros(3, dtype=torch.long), torch.zeros(1))
    assert project(torch.tensor([0.1, 0.9, 2.0]), budget, "cap").abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept(segments_budget: MakeBudget, dtype: torch.dtype) -> None:
    budget = segments_budget(torch.ones(100), torch.zeros(100, dtype=torch.long), torch.tensor([30.0]))
    s = project(torch.rand(100, dtype=dtype), budget, "cap")
    assert s.dtype == dtype
    assert s.double().sum().item() == pytest.approx(30, abs=1e-4)
