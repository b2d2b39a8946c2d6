"""A mask that another run has found already."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from policyprune.errors import UsageError
from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.budget.selection import select
from policyprune.pruning.mask_file import save_mask
from policyprune.pruning.optimizers.no_search import FromRun
from policyprune.pruning.optimizers.problem import Problem
from policyprune.pruning.space import space_of
from policyprune.storage.record_file import MASK_FILE

SIZES = [(4, 6), (4, 6), (4, 6)]


def problem_of(adapter: Any, options: Any, sizes: Sequence[tuple[int, int]] = SIZES, keep: float = 0.5) -> Problem:
    made = adapter(sizes)
    space = space_of(made, ["attention", "ffn"])
    scores = torch.rand(space.n, generator=torch.Generator().manual_seed(1))
    budget = make_budget(options("flops", keep), made, space)
    lengths = torch.ones(4, dtype=torch.long)
    return Problem(lambda masks, rows: rows.float(), space, budget, scores, scores, lengths, 0)


@pytest.fixture
def problem(synthetic_adapter: Any, budget_options: Any) -> Problem:
    return problem_of(synthetic_adapter, budget_options)


@pytest.fixture
def run(problem: Problem, tmp_path: Path) -> FromRun:
    save_mask(tmp_path / MASK_FILE, select(problem.start, problem.budget), problem.space, problem.start)
    return FromRun(folder=str(tmp_path))


def test_the_mask_is_that_of_the_run(problem: Problem, run: FromRun) -> None:
    found = run.search(problem, lambda told: None)
    assert torch.equal(found.mask, select(problem.start, problem.budget))
    assert found.forwards == 0


def test_a_mask_of_other_units_is_refused(run: FromRun, synthetic_adapter: Any, budget_options: Any) -> None:
    other = problem_of(synthetic_adapter, budget_options, [(4, 6), (4, 7), (4, 6)])
    with pytest.raises(UsageError, match=r"optimizer\.folder: .* not of this model's units or granularity"):
        run.search(other, lambda told: None)


def test_a_mask_beyond_the_budget_is_refused(problem: Problem, run: FromRun) -> None:
    tight = replace(problem, budget=replace(problem.budget, pool_limit=problem.budget.pool_limit * 0.9, keep=0.45))
    with pytest.raises(UsageError, match=r"optimizer\.folder: .* keeps more than budget\.keep=0\.45 allows"):
        run.search(tight, lambda told: None)
