"""The search on losses that are functions of the mask alone, with optima that are known."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.optimizers.no_search import OneShot
from policyprune.pruning.optimizers.policy_gradient import PolicyGradient
from policyprune.pruning.optimizers.problem import Found, Problem
from policyprune.pruning.space import space_of

SEQUENCES = 20
LENGTHS = torch.ones(SEQUENCES, dtype=torch.long)
COUNTS = [(2, 4), (2, 4)]  # 4 heads and 8 channels
WORTH = torch.tensor([0.1, 0.9, 0.2, 0.6, 0.1, 0.8, 0.3, 0.7, 0.6, 0.2, 0.9, 0.0])
Loss = Callable[[Tensor], Tensor]


def difficulty(rows: Tensor) -> Tensor:
    """What a sequence loses under any mask."""
    return 2 + (rows % 5).float()


def evaluate_with(loss: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    """Masks (B, n) or (1, n) and rows (B,) to losses (B,)."""
    return lambda masks, rows: loss(masks) + difficulty(rows)


def separable(masks: Tensor) -> Tensor:
    """Each unit has a worth of its own."""
    return (1 - masks) @ WORTH


def with_interactions(masks: Tensor) -> Tensor:
    """Channels that stand in for each other: one of each pair is enough, and the second adds next to nothing."""
    kind = torch.tensor([0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1]).bool()
    heads, channels = masks[:, ~kind], masks[:, kind]
    pairs = channels.view(len(masks), 4, 2)
    missing = (1 - pairs).prod(-1) @ torch.tensor([1.0, 0.9, 0.8, 0.7])
    return missing + (1 - pairs).sum((1, 2)) * 0.02 + (1 - heads) @ torch.tensor([0.9, 0.2, 0.8, 0.1])


@pytest.fixture
def problem(synthetic_adapter: Any, budget_options: Any) -> Problem:
    adapter = synthetic_adapter(COUNTS)
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(budget_options("rate", 0.5), adapter, space)
    start = torch.full((space.n,), 0.5)
    return Problem(evaluate_with(separable), space, budget, torch.rand(space.n), start, LENGTHS, seed=3)


def run(problem: Problem, config: PolicyGradient) -> tuple[Found, list[dict[str, Any]]]:
    reports: list[dict[str, Any]] = []
    return config.search(problem, reports.append), reports


def best_mask(problem: Problem, loss: Loss) -> Tensor:
    """The optimum by trying all masks that meet the budget."""
    heads, channels = ((problem.budget.pool == pool).nonzero().flatten().tolist() for pool in (0, 1))
    masks = torch.zeros(0, problem.space.n)
    for kept in combinations(heads, len(heads) // 2):
        for more in combinations(channels, len(channels) // 2):
            mask = torch.zeros(1, problem.space.n)
            mask[0, list(kept + more)] = 1
            masks = torch.cat([masks, mask])
    return masks[loss(masks).argmin()].bool()


@pytest.mark.parametrize("loss", [separable, with_interactions])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_finds_the_optimum(problem: Problem, search_options: Any, loss: Loss, seed: int) -> None:
    problem = replace(problem, evaluate=evaluate_with(loss), seed=seed)
    found, _ = run(problem, search_options(steps=150, learning_rate=0.1))
    best = best_mask(problem, loss)  # one of several where channels stand in for each other
    assert problem.budget.spent(found.mask).tolist() == problem.budget.pool_limit.tolist()
    assert loss(found.mask.float()[None]).item() == pytest.approx(loss(best.float()[None]).item())


def test_it_finds_the_optimum_from_a_misleading_start(problem: Problem, search_options: Any) -> None:
    start = torch.where(best_mask(problem, separable), 0.3, 0.7)
    found, _ = run(replace(problem, start=start), search_options(steps=150, learning_rate=0.1))
    assert found.mask.tolist() == best_mask(problem, separable).tolist()


@pytest.mark.parametrize(
    "changes",
    [
        {"progressive": True},
        {"projection": "equality"},
        {"mask_per": "batch"},
        {"mask_per": "batch", "masks": 4, "baseline": "leave_one_out"},
        {"baseline": "residual"},
        {"baseline": "residual", "mask_per": "batch"},
        {"baseline": "moving_average"},
        {"baseline": "moving_average", "window_update": "before_use", "divisor": "masks_minus_one"},
        {"baseline": "none", "learning_rate": 0.005},
        {"schedule": "linear"},
        {"schedule": "constant"},
        {"score": "textbook"},
        {"score": "natural"},
        {"attention_rate": 10},
    ],
    ids=lambda changes: ",".join(f"{key}={value}" for key, value in changes.items()),
)
def test_every_setting_meets_the_budget_and_improves_on_chance(
    problem: Problem, search_options: Any, changes: dict[str, Any]
) -> None:
    found, _ = run(problem, search_options(**({"steps": 120, "learning_rate": 0.05} | changes)))
    assert problem.budget.spent(found.mask).tolist() == problem.budget.pool_limit.tolist()
    spent = problem.budget.spent(found.probabilities)
    assert (spent <= problem.budget.pool_limit + 1e-4).all()
    assert changes.get("projection") != "equality" or (spent >= problem.budget.pool_limit - 1e-4).all()
    loss, best, dense = (
        float(separable(mask.float()[None]))
        for mask in (found.mask, best_mask(problem, separable), torch.ones(problem.space.n))
    )
    chance = float(WORTH.sum()) / 2
    assert dense == 0
    assert loss < best + 0.3 * (chance - best)


def test_a_flops_budget_is_met(synthetic_adapter: Any, budget_options: Any, search_options: Any) -> None:
    adapter = synthetic_adapter(COUNTS)
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(budget_options("flops", 0.6), adapter, space)
    start = torch.full((space.n,), 0.6)
    problem = Problem(evaluate_with(separable), space, budget, torch.rand(space.n), start, LENGTHS, seed=0)
    found, _ = run(problem, search_options())
    assert (budget.spent(found.mask) <= budget.pool_limit).all()
    assert (budget.spent(found.probabilities) <= 1.0001 * budget.pool_limit).all()


def test_progressive_starts_dense_and_ends_on_the_budget(problem: Problem, search_options: Any) -> None:
    start = torch.ones(problem.space.n)
    _, reports = run(replace(problem, start=start), search_options(progressive=True, projection="equality", steps=50))
    keep = [float(report["keep"]) for report in reports]
    wanted = [0.5 + 0.5 * (1 - step / 50) ** 3 for step in range(1, 51)]
    assert keep == pytest.approx(wanted, abs=1e-4)


def test_the_learning_rate_follows_its_schedule(problem: Problem, search_options: Any) -> None:
    def rates(schedule: str) -> list[float]:
        _, reports = run(problem, search_options(schedule=schedule, steps=4, learning_rate=0.1))
        return [report["learning_rate"] for report in reports]

    assert rates("constant") == pytest.approx([0.1] * 4)
    assert rates("linear") == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert rates("cosine") == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], abs=1e-6)


def test_the_same_seed_gives_the_same_trajectory(problem: Problem, search_options: Any) -> None:
    (first, curve), (second, again) = (run(problem, search_options(steps=30)) for _ in range(2))
    assert torch.equal(first.mask, second.mask)
    assert torch.equal(first.probabilities, second.probabilities)
    assert curve == again


def test_another_seed_gives_another_trajectory(problem: Problem, search_options: Any) -> None:
    first, _ = run(problem, search_options(steps=30))
    second, _ = run(replace(problem, seed=4), search_options(steps=30))
    assert not torch.equal(first.probabilities, second.probabilities)


def counting(problem: Problem) -> tuple[Problem, list[tuple[Tensor, Tensor]]]:
    calls: list[tuple[Tensor, Tensor]] = []

    def evaluate(masks: Tensor, rows: Tensor) -> Tensor:
        calls.append((masks, rows))
        return problem.evaluate(masks, rows)

    return replace(problem, evaluate=evaluate), calls


@pytest.mark.parametrize("baseline", ["leave_one_out", "residual"])
@pytest.mark.parametrize("masks", [2, 3])
def test_every_forward_is_reported(problem: Problem, search_options: Any, baseline: str, masks: int) -> None:
    counted, calls = counting(problem)
    found, reports = run(counted, search_options(steps=12, masks=masks, baseline=baseline))
    assert found.forwards == reports[-1]["forwards"] == len(calls)
    assert [report["step"] for report in reports] == list(range(1, 13))
    assert baseline == "residual" or len(calls) == 12 * masks


def test_the_dense_loss_of_a_sequence_is_computed_once(problem: Problem, search_options: Any) -> None:
    counted, calls = counting(problem)
    run(counted, search_options(steps=20, baseline="residual"))
    dense = torch.cat([rows for masks, rows in calls if masks.shape[0] == 1 and masks.all()])
    assert sorted(dense.tolist()) == list(range(SEQUENCES))


@pytest.mark.parametrize(("mask_per", "count"), [("sequence", 8), ("batch", 1)])
def test_masks_are_drawn_per_sequence_or_per_batch(
    problem: Problem, search_options: Any, mask_per: str, count: int
) -> None:
    counted, calls = counting(problem)
    run(counted, search_options(steps=2, mask_per=mask_per))
    assert {tuple(masks.shape) for masks, _ in calls} == {(count, problem.space.n)}
    assert {tuple(rows.shape) for _, rows in calls} == {(8,)}


def test_an_epoch_takes_each_sequence_once(problem: Problem, search_options: Any) -> None:
    counted, calls = counting(problem)
    run(counted, search_options(steps=10, batch_size=4, masks=2))
    rows = torch.cat([rows for _, rows in calls[::2]])
    assert sorted(rows[:SEQUENCES].tolist()) == sorted(rows[SEQUENCES:].tolist()) == list(range(SEQUENCES))
    assert rows[:SEQUENCES].tolist() != rows[SEQUENCES:].tolist()


def test_masks_are_drawn_with_the_current_probabilities(problem: Problem, search_options: Any) -> None:
    start = torch.where(torch.arange(problem.space.n) % 2 == 0, 0.9, 0.1)
    counted, calls = counting(replace(problem, start=start))
    run(counted, search_options(steps=100, learning_rate=1e-9))
    drawn = torch.cat([masks for masks, _ in calls]).mean(0)
    torch.testing.assert_close(drawn, start, rtol=0, atol=0.04)


def test_the_start_is_left_as_it_was(problem: Problem, search_options: Any) -> None:
    before = problem.start.clone()
    run(problem, search_options(steps=5))
    assert torch.equal(problem.start, before)


def test_one_shot_keeps_the_best_units_and_spends_nothing(problem: Problem) -> None:
    counted, calls = counting(problem)
    found = OneShot().search(counted, lambda _: None)
    assert found.forwards == len(calls) == 0
    for pool, kept in ((0, 2), (1, 4)):
        own = (problem.budget.pool == pool).nonzero().flatten()
        top = own[problem.importance[own].topk(kept).indices]
        assert sorted(top.tolist()) == own[found.mask[own]].tolist()
