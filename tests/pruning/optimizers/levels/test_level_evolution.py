"""Exchanges of levels between blocks of a kind, on losses with known optima."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import policyprune as pp
from harness import paragraphs
from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.optimizers.levels.level_evolution import LevelEvolution, children, exchanged
from policyprune.pruning.optimizers.levels.widths import Widths
from policyprune.pruning.optimizers.problem import Found, Problem
from policyprune.pruning.space import space_of

COUNTS = [(2, 6), (2, 6), (2, 6)]
BLOCKS = [count for pair in COUNTS for count in pair]
WORTH = torch.tensor([1.0, 0.2, 0.1, 1.5, 0.4, 0.8])  # of the blocks' units
CONFIG = LevelEvolution(steps=25, offspring=6, survivors=[3], sequences=[2, 4])


def evaluate(masks: Tensor, rows: Tensor) -> Tensor:
    """What is gone of a block costs its square."""
    gone = torch.stack([part.sum() for part in (1 - masks[0]).split(BLOCKS)])
    return (WORTH * gone.square()).sum() + (rows % 5).float()


def make(adapter_of: Any, options: Any, name: str = "rate", keep: float = 0.5) -> Problem:
    adapter = adapter_of(COUNTS)
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(options(name, keep), adapter, space)
    scores = torch.rand(space.n, generator=torch.Generator().manual_seed(1))
    return Problem(evaluate, space, budget, scores, torch.full((space.n,), 0.5), torch.ones(20, dtype=torch.long), 3)


@pytest.fixture
def problem(synthetic_adapter: Any, budget_options: Any) -> Problem:
    return make(synthetic_adapter, budget_options)


def run(problem: Problem, **changes: Any) -> tuple[Found, list[dict[str, Any]]]:
    reports: list[dict[str, Any]] = []
    return replace(CONFIG, **changes).search(problem, reports.append), reports


def gone(mask: Tensor) -> list[int]:
    return [int((~part).sum()) for part in mask.split(BLOCKS)]


def test_it_begins_with_equal_shares_and_finds_the_optimum(problem: Problem) -> None:
    seen: list[Tensor] = []

    def watching(masks: Tensor, rows: Tensor) -> Tensor:
        seen.append(masks[0].bool())
        return evaluate(masks, rows)

    widths = Widths.of(problem.space, problem.importance, problem.budget, 24)
    assert gone(widths.mask(widths.uniform())) == [1, 3, 1, 3, 1, 3]
    found, reports = run(replace(problem, evaluate=watching))
    assert gone(found.mask) == [0, 6, 2, 1, 1, 2]  # of equal marginal costs: 1 head here or there
    assert found.forwards == len(seen)
    assert len(reports) == 25
    assert all(row["loss"] <= row["parent_loss"] for row in reports)
    for mask in seen:
        for own, scores in zip(mask.split(BLOCKS), problem.importance.split(BLOCKS), strict=True):
            kept, lost = scores[own], scores[~own]
            assert not len(kept) or not len(lost) or float(kept.min()) > float(lost.max())


@pytest.mark.parametrize("name", ["rate", "params", "flops"])
@settings(max_examples=20)
@given(seed=st.integers(0, 1000), keep=st.floats(0.15, 0.95))
def test_an_exchange_costs_nothing(
    name: str, seed: int, keep: float, synthetic_adapter: Any, budget_options: Any
) -> None:
    asked = make(synthetic_adapter, budget_options, name, keep)
    widths = Widths.of(asked.space, asked.importance, asked.budget, 3)
    generator = torch.Generator().manual_seed(seed)
    counts = widths.uniform()
    spent = asked.budget.spent(widths.mask(counts))
    assert widths.fit(counts)
    for _ in range(5):
        tried = exchanged(counts, widths, generator)
        changes = [new - old for new, old in zip(tried, counts, strict=True) if new != old]
        assert changes == [] or sorted(changes) == [-2, 2] or sorted(changes) == [-1, 1]
        assert [new - old for new, old in zip(tried[::2], counts[::2], strict=True)].count(0) != 2  # within a kind
        torch.testing.assert_close(asked.budget.spent(widths.mask(tried)), spent)
        counts = tried


def test_children_differ(problem: Problem) -> None:
    widths = Widths.of(problem.space, problem.importance, problem.budget, 24)
    parent = widths.uniform()
    found = children(parent, 12, 3, widths, torch.Generator().manual_seed(0))
    assert len({tuple(child) for child in [parent, *found]}) == 13
    assert children(widths.whole, 3, 2, widths, torch.Generator().manual_seed(0)) == []


def test_nothing_is_exchanged_where_nothing_goes(synthetic_adapter: Any, budget_options: Any) -> None:
    found, _ = run(make(synthetic_adapter, budget_options, keep=1.0), steps=2)
    assert bool(found.mask.all())


def test_same_seed_same_result(problem: Problem) -> None:
    first, reports = run(problem, steps=4)
    torch.rand(5)
    again, others = run(problem, steps=4)
    assert torch.equal(first.mask, again.mask)
    assert reports == others
    assert run(replace(problem, seed=4), steps=4)[1] != reports


def test_a_loss_that_is_no_number_is_the_worst(problem: Problem) -> None:
    def broken(masks: Tensor, rows: Tensor) -> Tensor:
        last = masks[0].split(BLOCKS)[-1].sum()
        return torch.where(last < 3, torch.nan, evaluate(masks, rows))

    found, reports = run(replace(problem, evaluate=broken))
    assert gone(found.mask)[-1] <= 3
    assert sum(row["skipped"] for row in reports) > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sequences": [2, 8]}, r"optimizer.sequences: \[2, 8\] are not those of 3 selections"),
        ({"sequences": [2, 8, 8]}, r"optimizer.sequences: \[2, 8, 8\] do not rise"),
        ({"survivors": [16, 2]}, r"optimizer.survivors: \[16, 2\] of optimizer.offspring=16 do not fall"),
        ({"steps": 0}, "optimizer.steps: 0 is out of range"),
    ],
)
def test_what_makes_no_sense_is_refused(
    changes: dict[str, Any], words: str, tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    with pytest.raises(pp.UsageError, match=words):
        pp.prune(tiny_llama(), paragraphs(8), tiny_tokenizer, optimizer=LevelEvolution(**changes), importance="obs")
