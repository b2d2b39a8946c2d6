"""The evolutionary search on losses with known optima."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.optimizers.evolution import Evolution, crossed, mutated
from policyprune.pruning.optimizers.problem import Found, Problem
from policyprune.pruning.space import space_of

CONFIG = Evolution(steps=25, population=10, parents=3, mutation=0.2, batch_size=4, final_batches=3)
WORTH = torch.tensor([0.1, 0.9, 0.2, 0.6, 0.1, 0.8, 0.3, 0.7, 0.6, 0.2, 0.9, 0.0])


def evaluate(masks: Tensor, rows: Tensor) -> Tensor:
    """Neighbouring channels stand in for each other: keeping both of a pair is a waste."""
    pairs = masks[:, [2, 4, 8, 10]] * masks[:, [3, 5, 9, 11]]
    return (1 - masks) @ WORTH + 0.3 * pairs.sum(1) + (rows % 5)


def make(adapter_of: Any, options: Any, name: str = "rate", scope: str = "global") -> Problem:
    adapter = adapter_of([(2, 4), (2, 4)])
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(options(name, 0.5, scope), adapter, space)
    lengths = torch.ones(20, dtype=torch.long)
    return Problem(evaluate, space, budget, torch.rand(12), torch.full((12,), 0.5), lengths, seed=3)


@pytest.fixture
def problem(synthetic_adapter: Any, budget_options: Any) -> Problem:
    return make(synthetic_adapter, budget_options)


def run(problem: Problem, **changes: Any) -> tuple[Found, list[dict[str, Any]]]:
    reports: list[dict[str, Any]] = []
    return replace(CONFIG, **changes).search(problem, reports.append), reports


def test_finds_the_optimum(problem: Problem) -> None:
    heads, channels = ((problem.budget.pool == pool).nonzero().flatten().tolist() for pool in (0, 1))
    masks = []
    for own in (own + more for own in combinations(heads, 2) for more in combinations(channels, 4)):
        masks.append(torch.zeros(12).index_fill(0, torch.tensor(own), 1.0))
    best = masks[int(evaluate(torch.stack(masks), torch.zeros(1)).argmin())]
    found, reports = run(problem)
    assert torch.equal(found.mask, best.bool())
    assert reports[-1]["best_loss"] < reports[0]["loss"]


def test_takes_the_forwards_that_it_says_and_no_others(problem: Problem) -> None:
    calls: list[int] = []

    def counting(masks: Tensor, rows: Tensor) -> Tensor:
        calls.append(len(rows))
        return evaluate(masks, rows)

    found, reports = run(replace(problem, evaluate=counting), steps=4, population=6, parents=2, final_batches=5)
    assert len(calls) == found.forwards == 4 * 6 + 2 * 5
    assert set(calls) == {4}
    assert [row["forwards"] for row in reports] == [6, 12, 18, 24]


@pytest.mark.parametrize("scope", ["global", "per_layer"])
@pytest.mark.parametrize("name", ["rate", "params", "flops"])
def test_every_mask_meets_the_budget(name: str, scope: str, synthetic_adapter: Any, budget_options: Any) -> None:
    problem = make(synthetic_adapter, budget_options, name, scope)
    seen: list[Tensor] = []

    def watching(masks: Tensor, rows: Tensor) -> Tensor:
        seen.extend(masks)
        return evaluate(masks, rows)

    found, _ = run(replace(problem, evaluate=watching), steps=5)
    assert all(bool((problem.budget.spent(m) <= problem.budget.pool_limit + 1e-6).all()) for m in (*seen, found.mask))
    assert len({tuple(mask.tolist()) for mask in seen}) >= 8


def test_same_seed_same_mask_and_the_rest_of_the_world_has_no_say(problem: Problem) -> None:
    first, reports = run(problem, steps=3)
    torch.rand(5)
    again, others = run(problem, steps=3)
    assert torch.equal(first.mask, again.mask)
    assert reports == others
    assert run(replace(problem, seed=4), steps=3)[1] != reports


def test_a_loss_that_is_not_a_number_is_the_worst(problem: Problem) -> None:
    def broken(masks: Tensor, rows: Tensor) -> Tensor:
        return torch.where(masks[:, 1] > 0, torch.nan, evaluate(masks, rows))

    found, _ = run(replace(problem, evaluate=broken))
    assert not found.mask[1]


def test_children_keep_what_both_parents_keep_and_mutants_change_little(problem: Problem) -> None:
    generator = torch.Generator().manual_seed(0)
    mother, father = (mutated(torch.ones(12).bool(), problem.start, 0.4, problem.budget, generator) for _ in range(2))
    for _ in range(20):
        child = crossed(mother, father, problem.budget, generator)
        assert child[mother & father].all()
        assert not child[~mother & ~father].any()
        mutant = mutated(mother, problem.start.double(), 1 / 6, problem.budget, generator)
        assert int((mutant != mother).sum()) == 2


def test_mutations_follow_the_initial_probabilities(problem: Problem) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.full((12,), 0.5).double()
    start[[2, 3]], start[[8, 9]] = 0.999, 0.001
    mask = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0, 0]).bool()
    gone = torch.stack([mask & ~mutated(mask, start, 1 / 6, problem.budget, generator) for _ in range(200)]).sum(0)
    assert gone[[8, 9]].sum() > 150
    assert gone[[2, 3]].sum() < 5
