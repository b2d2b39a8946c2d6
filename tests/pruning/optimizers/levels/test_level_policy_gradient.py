"""Searches by a policy over levels, on losses that single blocks do not tell."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import policyprune as pp
from harness import paragraphs
from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.optimizers.levels.level_policy_gradient import LevelPolicyGradient, advantages
from policyprune.pruning.optimizers.levels.level_ppo import LevelPPO
from policyprune.pruning.optimizers.levels.levels import Levels
from policyprune.pruning.optimizers.problem import Found, Problem
from policyprune.pruning.space import space_of

COUNTS = [(2, 6), (2, 6), (2, 6)]
BLOCKS = [count for pair in COUNTS for count in pair]
WORTH = torch.tensor([1.0, 0.2, 0.5, 0.2, 0.8, 0.6])
COMMON: dict[str, Any] = {"masks": 12, "sequences": 4, "first_sequences": 1, "final_sequences": 8}
SEARCHES = [LevelPolicyGradient(steps=60, **COMMON), LevelPPO(steps=40, **COMMON)]


def interacting(masks: Tensor, rows: Tensor) -> Tensor:
    """The first two FFNs stand in for each other: one of them is cheap to lose, both together are not."""
    gone = torch.stack([1 - part.mean() for part in masks[0].split(BLOCKS)])
    return (WORTH * gone.square()).sum() + 3 * gone[1] * gone[3] + (rows % 3).float()


def true_loss(mask: Tensor) -> float:
    return float(interacting(mask[None].float(), torch.zeros(1)))


@pytest.fixture
def problem(synthetic_adapter: Any, budget_options: Any) -> Problem:
    adapter = synthetic_adapter(COUNTS)
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(budget_options("rate", 0.4), adapter, space)
    start, lengths = torch.full((24,), 0.5), torch.ones(20, dtype=torch.long)
    return Problem(interacting, space, budget, torch.ones(24), start, lengths, seed=3)


def run(problem: Problem, search: LevelPolicyGradient) -> tuple[Found, list[dict[str, Any]]]:
    reports: list[dict[str, Any]] = []
    return search.search(problem, reports.append), reports


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.name)
def test_it_finds_what_single_blocks_do_not_tell(problem: Problem, search: LevelPolicyGradient) -> None:
    start = Levels().search(problem, lambda row: None).mask
    found, reports = run(problem, search)
    assert true_loss(found.mask) < 0.95 * true_loss(start)
    steps = reports[-search.steps :]
    assert steps[-1]["levels"] < steps[0]["levels"]
    assert sum(row["loss"] for row in steps[-5:]) < sum(row["loss"] for row in steps[:5])


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.name)
def test_every_sample_meets_the_budget_and_steps_look_at_more_and_more(
    problem: Problem, search: LevelPolicyGradient
) -> None:
    seen: list[tuple[Tensor, int]] = []

    def watching(masks: Tensor, rows: Tensor) -> Tensor:
        seen.append((masks[0], len(rows)))
        return interacting(masks, rows)

    found, reports = run(replace(problem, evaluate=watching), replace(search, steps=6, sequences=9))
    assert found.forwards == len(seen)
    in_steps = seen[reports[-7]["forwards"] :]
    assert all(bool((problem.budget.spent(mask) <= problem.budget.pool_limit).all()) for mask, _ in in_steps)
    counts = [count for _, count in in_steps]
    assert [count for count in (1, 2, 4, 6, 9) if count in counts] == [1, 2, 4, 6, 9]
    assert counts[-1] == 8  # the final comparison


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.name)
def test_same_seed_same_result(problem: Problem, search: LevelPolicyGradient) -> None:
    search = replace(search, steps=4)
    first, reports = run(problem, search)
    torch.rand(5)
    again, others = run(problem, search)
    assert torch.equal(first.mask, again.mask)
    assert reports == others
    assert run(replace(problem, seed=4), search)[1] != reports


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.name)
def test_losses_that_are_no_numbers_say_nothing(problem: Problem, search: LevelPolicyGradient) -> None:
    def broken(masks: Tensor, rows: Tensor) -> Tensor:
        lonely = masks[0].split(BLOCKS)[1].sum() < 2
        return torch.where(lonely, torch.nan, interacting(masks, rows))

    found, reports = run(replace(problem, evaluate=broken), replace(search, steps=10))
    assert int(found.mask.split(BLOCKS)[1].sum()) >= 2
    assert sum(row["skipped"] for row in reports) > 0


def test_advantages_are_relative_to_the_others() -> None:
    got = advantages([1.0, 2.0, float("inf"), 3.0])
    assert got.tolist() == pytest.approx([-(2**0.5), 0.0, 0.0, 2**0.5])
    assert advantages([1.0, 1.0]).tolist() == [0.0, 0.0]


def test_single_blocks_need_not_be_measured(problem: Problem) -> None:
    _, reports = run(problem, replace(SEARCHES[0], widths=[], steps=2))
    assert len(reports) == 1 + 2


def test_sequences_grow(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    search = LevelPPO(first_sequences=20)
    with pytest.raises(pp.UsageError, match=r"optimizer.first_sequences: 20 is more than optimizer.sequences=16"):
        pp.prune(tiny_llama(), paragraphs(8), tiny_tokenizer, optimizer=search, importance="obs")
