"""A policy over levels: expected costs, gradients against enumeration, samples within the budget."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.optimizers.estimator import Baseline
from policyprune.pruning.optimizers.levels.level_policy import LevelPolicy
from policyprune.pruning.optimizers.levels.level_policy_gradient import surrogate
from policyprune.pruning.optimizers.levels.widths import Widths
from policyprune.pruning.space import space_of

SEEDS = st.integers(0, 10_000)
NAMES = st.sampled_from(["rate", "params", "flops"])


def widths_of(adapter_of: Any, options: Any, name: str, keep: float, counts: Any = ((2, 7), (3, 6))) -> Widths:
    adapter = adapter_of(counts)
    space = space_of(adapter, ["attention", "ffn"])
    scores = torch.rand(space.n, generator=torch.Generator().manual_seed(1))
    return Widths.of(space, scores, make_budget(options(name, keep), adapter, space), 4)


def random_theta(policy: LevelPolicy, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(policy.cost.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=20)
@given(seed=SEEDS, name=NAMES, keep=st.floats(0.1, 0.95), scale=st.floats(0.1, 30.0))
def test_the_expected_cost_is_the_budget(
    seed: int, name: str, keep: float, scale: float, synthetic_adapter: Any, budget_options: Any
) -> None:
    policy = LevelPolicy.of(widths_of(synthetic_adapter, budget_options, name, keep))
    log_pi = policy.log_probabilities(random_theta(policy, seed, scale))
    torch.testing.assert_close(log_pi.exp().sum(1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(policy.expected_cost(log_pi), policy.limit, rtol=1e-6, atol=1e-9)


def expected(policy: LevelPolicy, theta: Tensor, losses: Tensor) -> Tensor:
    """By enumeration: losses (L, L, ...) of all samples times their probabilities."""
    pi = policy.log_probabilities(theta).exp()
    value = losses
    for own in reversed(pi):
        value = (value * own).sum(-1)
    return value


@pytest.fixture(scope="module")
def small(synthetic_adapter: Any, budget_options: Any) -> LevelPolicy:
    """Two blocks of three levels and one more pool."""
    return LevelPolicy.of(widths_of(synthetic_adapter, budget_options, "rate", 0.6, ((2, 2), (2, 2))))


@settings(max_examples=10)
@given(seed=SEEDS)
def test_the_gradient_follows_the_price_of_the_budget(seed: int, small: LevelPolicy) -> None:
    losses = torch.rand(3, 3, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    theta = random_theta(small, seed).requires_grad_()
    (gradient,) = torch.autograd.grad(expected(small, theta, losses), theta)
    with torch.no_grad():
        for block, level in itertools.product(range(4), range(3)):
            step = torch.zeros_like(theta)
            step[block, level] = 1e-4
            slope = (expected(small, theta + step, losses) - expected(small, theta - step, losses)) / 2e-4
            assert float(gradient[block, level]) == pytest.approx(float(slope), abs=1e-6)


@settings(max_examples=2)
@given(seed=SEEDS)
def test_the_estimate_is_the_gradient_in_expectation(seed: int, synthetic_adapter: Any, budget_options: Any) -> None:
    """Over all pairs of samples, each with the other one's loss as its baseline."""
    policy = LevelPolicy.of(widths_of(synthetic_adapter, budget_options, "params", 0.5, ((2, 2),)))
    losses = torch.rand(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    theta = random_theta(policy, seed).requires_grad_()
    (truth,) = torch.autograd.grad(expected(policy, theta, losses), theta)
    pi = policy.log_probabilities(theta).exp().detach()
    estimate = torch.zeros_like(truth)
    samples = list(itertools.product(range(3), range(3)))
    for pair in itertools.product(samples, samples):
        drawn = torch.tensor(pair)
        chance = pi[torch.arange(2), drawn].prod()
        own = torch.stack([losses[sample] for sample in pair])[:, None]
        advantage = Baseline("leave_one_out", 1, "after_use").advantages(own, None).flatten()
        (gradient,) = torch.autograd.grad(surrogate(policy, theta, drawn, advantage), theta)
        estimate += chance * gradient
    torch.testing.assert_close(estimate, truth)


@settings(max_examples=20)
@given(seed=SEEDS, name=NAMES, keep=st.floats(0.1, 1.0))
def test_samples_are_repaired_to_the_budget(
    seed: int, name: str, keep: float, synthetic_adapter: Any, budget_options: Any
) -> None:
    widths = widths_of(synthetic_adapter, budget_options, name, keep)
    policy = LevelPolicy.of(widths)
    log_pi = policy.log_probabilities(random_theta(policy, seed))
    for levels in policy.draw(log_pi, 3, torch.Generator().manual_seed(seed)):
        places = policy.repaired(levels, log_pi)
        counts = widths.at(places)
        assert widths.fit(counts)
        for block, curve in enumerate(widths.curves):
            _, above = curve.beside(counts[block])
            assert above is None or not widths.fit([*counts[:block], above, *counts[block + 1 :]])
        if widths.fit(widths.at(levels.tolist())):
            assert all(new >= old for new, old in zip(places, levels.tolist(), strict=True))


@settings(max_examples=10)
@given(seed=SEEDS, keep=st.floats(0.3, 0.8), spread=st.floats(1.2, 2.5))
def test_the_start_draws_from_so_many_levels(
    seed: int, keep: float, spread: float, synthetic_adapter: Any, budget_options: Any
) -> None:
    widths = widths_of(synthetic_adapter, budget_options, "flops", keep)
    policy = LevelPolicy.of(widths)
    chance = torch.Generator().manual_seed(seed)
    losses = [
        torch.rand(len(curve.levels), generator=chance, dtype=torch.float64).sort(descending=True).values
        for curve in widths.curves
    ]
    theta = policy.start(losses, spread)
    assert float(policy.entropy(policy.log_probabilities(theta)).exp()) == pytest.approx(spread, rel=0.02)
    for own, lost in zip(theta, losses, strict=True):
        assert bool((own[: len(lost)].diff() >= 0).all())  # what loses less is the likelier, at equal cost


@settings(max_examples=10)
@given(seed=SEEDS, keep=st.floats(0.2, 0.9))
def test_the_likeliest_widths_are_those_of_all_that_fit(
    seed: int, keep: float, synthetic_adapter: Any, budget_options: Any
) -> None:
    widths = widths_of(synthetic_adapter, budget_options, "rate", keep, ((2, 8), (2, 8)))
    policy = LevelPolicy.of(widths)
    log_pi = policy.log_probabilities(random_theta(policy, seed))

    def chance(places: tuple[int, ...]) -> float:
        return float(log_pi[torch.arange(4), torch.tensor(places)].sum())

    every = itertools.product(*(range(len(curve.levels)) for curve in widths.curves))
    best = max((places for places in every if widths.fit(widths.at(places))), key=chance)
    assert policy.likeliest(widths, log_pi) == widths.filled(widths.at(best))
