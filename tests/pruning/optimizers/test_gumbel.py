"""Mask learning by back-propagation: the relaxation, its gradient, and optima that are known."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from policyprune.models.adapter import adapt
from policyprune.models.sequences import token_losses
from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.masking import Masking
from policyprune.pruning.optimizers.gumbel import Gumbel, along, relaxed
from policyprune.pruning.optimizers.problem import Found, Problem
from policyprune.pruning.space import space_of

CONFIG = Gumbel(
    steps=60,
    batch_size=4,
    masks=2,
    learning_rate=0.05,
    temperature=1.0,
    final_temperature=0.2,
    straight_through=True,
)
WORTH = torch.tensor([0.1, 0.9, 0.2, 0.6, 0.1, 0.8, 0.3, 0.7, 0.6, 0.2, 0.9, 0.0])


def evaluate(masks: Tensor, rows: Tensor) -> Tensor:
    return (1 - masks) @ WORTH + (rows % 5)


@pytest.fixture
def problem(small_problem: Any) -> Problem:
    found: Problem = small_problem(evaluate, torch.rand(12))
    return found


@torch.no_grad()
def run(problem: Problem, **changes: Any) -> tuple[Found, list[dict[str, Any]]]:
    reports: list[dict[str, Any]] = []
    return replace(CONFIG, **changes).search(problem, reports.append), reports


def test_relaxed_masks_are_open_as_often_as_their_probability_says() -> None:
    s = torch.tensor([0.1, 0.5, 0.9])
    masks = relaxed(s.logit(), torch.rand(20000, 3), 0.3, straight_through=False)
    torch.testing.assert_close((masks > 0.5).float().mean(0), s, atol=0.02, rtol=0)
    assert ((masks > 0) & (masks < 1)).float().mean() > 0.9
    hard = relaxed(s.logit(), torch.rand(20000, 3), 0.3, straight_through=True)
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    assert relaxed(s.logit(), torch.tensor([[0.0, 0.0, 1.0]]), 1e-3, straight_through=False).isfinite().all()


@pytest.mark.parametrize("straight_through", [False, True])
def test_the_gradient_is_that_of_the_sigmoid(straight_through: bool) -> None:
    logits, uniform, temperature = torch.randn(3, requires_grad=True), torch.rand(1, 3), 0.7
    (found,) = torch.autograd.grad(relaxed(logits, uniform, temperature, straight_through).sum(), logits)
    soft = torch.sigmoid((logits.detach() + torch.log(uniform[0]) - torch.log(1 - uniform[0])) / temperature)
    torch.testing.assert_close(found, soft * (1 - soft) / temperature, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("straight_through", [False, True])
def test_finds_the_units_of_most_worth(problem: Problem, straight_through: bool) -> None:
    found, reports = run(problem, straight_through=straight_through)
    kept = {pool: WORTH[(problem.budget.pool == pool) & found.mask].tolist() for pool in (0, 1)}
    for pool, values in kept.items():
        best = WORTH[problem.budget.pool == pool].sort(descending=True).values[: len(values)]
        assert sorted(values, reverse=True) == best.tolist()
    assert found.forwards == 2 * CONFIG.steps == reports[-1]["forwards"]
    assert reports[0]["temperature"] == pytest.approx(1.0)
    assert 0.2 < reports[-1]["temperature"] < 0.21
    assert all(float(row["keep"]) == pytest.approx(0.5, abs=1e-3) for row in reports)


def test_same_seed_same_probabilities(problem: Problem) -> None:
    first, again, other = (run(own, steps=4)[0] for own in (problem, problem, replace(problem, seed=9)))
    assert torch.equal(first.probabilities, again.probabilities)
    assert not torch.equal(first.probabilities, other.probabilities)


def test_a_gradient_that_is_not_finite_is_skipped(problem: Problem) -> None:
    calls: list[int] = []

    def broken(masks: Tensor, rows: Tensor) -> Tensor:
        calls.append(1)
        return evaluate(masks, rows) * (torch.nan if len(calls) < 3 else 1.0)

    found, reports = run(replace(problem, evaluate=broken))
    assert [float(row["skipped"]) for row in reports[:3]] == [1.0, 0.0, 0.0]
    assert found.probabilities.isfinite().all()
    assert bool(found.mask[1])


def test_the_gradient_goes_through_a_model(tiny_llama: Any, budget_options: Any) -> None:
    """A channel that matters to the loss and one that does not, told apart by back-propagation alone."""
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[:, 7] = 0
    adapter = adapt(model)
    space = space_of(adapter, ["ffn"])
    budget = make_budget(budget_options("rate", 0.5), adapter, space)
    ids = torch.randint(3, 300, (6, 12))
    masking = Masking(adapter, space)

    def loss(masks: Tensor, rows: Tensor) -> Tensor:
        masking.set(masks)
        return token_losses(model, ids[rows]).mean(-1)

    start = torch.full((space.n,), 0.5)
    problem = Problem(loss, space, budget, start, start, torch.full((6,), 12), seed=0)
    with masking.on(model):
        found, _ = run(problem, steps=3)
    views = space.views(found.probabilities)
    neutral = views[1, "ffn"][7]
    assert (views[1, "ffn"] - neutral).abs().max() > 0.01
    assert float(neutral) == pytest.approx(0.5, abs=0.1)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_steps_go_along_the_budget_and_are_as_large_for_heads_as_for_channels(
    synthetic_adapter: Any, budget_options: Any, problem: Problem
) -> None:
    adapter = synthetic_adapter([(2, 4), (2, 4)])
    joint = make_budget(budget_options("flops", 0.5), adapter, problem.space)
    gradient = torch.randn(12)
    assert float((along(gradient, joint) * joint.cost).sum()) == pytest.approx(0, abs=1e-3)
    shifted = along(gradient + 3 * joint.cost.float(), joint)
    torch.testing.assert_close(shifted, along(gradient, joint), rtol=1e-3, atol=1e-3)
    heads = problem.budget.pool == 0
    found = along(torch.where(heads, 1000 * gradient, gradient), problem.budget)
    for own in (heads, ~heads):
        assert float(found[own].square().mean()) == pytest.approx(1, rel=1e-4)
        assert float(found[own].sum()) == pytest.approx(0, abs=1e-4)
    assert not along(torch.full((12,), 0.3), problem.budget).any()
    assert not along(torch.zeros(12), problem.budget).any()
