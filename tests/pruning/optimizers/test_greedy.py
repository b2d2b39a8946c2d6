"""Greedy removal against doing it by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.optimizers.greedy import Greedy
from policyprune.pruning.optimizers.problem import Found, Problem
from policyprune.pruning.space import Group, Space, space_of

CONFIG = Greedy(sequences=6, batch_size=4)
MATRIX = torch.randn(8, 8, generator=torch.Generator().manual_seed(4)) / 4
WORTH = torch.tensor([0.3, 0.1, 0.5, 0.2, 0.9, 0.25, 0.4, 0.8])


def evaluate(masks: Tensor, rows: Tensor) -> Tensor:
    """Removed units interact."""
    gone = 1 - masks
    return gone @ WORTH + ((gone @ MATRIX) * gone).sum(1) + (rows % 3)


def make(budget_options: Any, adapter_of: Any, scope: str = "global", keep: float = 0.5) -> Problem:
    """Two layers with four heads each."""
    adapter = adapter_of([(4, 0), (4, 0)])
    space = space_of(adapter, ["attention"])
    budget = make_budget(budget_options("rate", keep, scope), adapter, space)
    lengths = torch.arange(20) % 4 + 1
    return Problem(evaluate, space, budget, torch.rand(8), torch.full((8,), 0.5), lengths, seed=3)


def run(problem: Problem) -> tuple[Found, list[dict[str, Any]]]:
    reports: list[dict[str, Any]] = []
    return CONFIG.search(problem, reports.append), reports


def by_hand(removals: int) -> list[int]:
    gone: list[int] = []
    for _ in range(removals):
        losses = {}
        for unit in set(range(8)) - set(gone):
            mask = torch.ones(1, 8)
            mask[0, [*gone, unit]] = 0
            losses[unit] = float(evaluate(mask, torch.arange(6)).mean())
        gone.append(min(losses, key=losses.__getitem__))
    return gone


@pytest.mark.parametrize("keep", [1.0, 0.75, 0.5, 0.125])
def test_removes_what_hurts_least_one_after_the_other(keep: float, budget_options: Any, synthetic_adapter: Any) -> None:
    found, reports = run(make(budget_options, synthetic_adapter, keep=keep))
    removals = round(8 * (1 - keep))
    assert set((~found.mask).nonzero().flatten().tolist()) == set(by_hand(removals))
    assert len(reports) == removals
    trials = sum(8 - index for index in range(removals))
    assert found.forwards == 2 * trials  # six sequences, four at a time
    if removals:
        assert reports[-1]["loss"] == pytest.approx(
            float(evaluate(found.mask.float()[None], torch.arange(6)).mean()), rel=1e-6
        )


def test_a_budget_per_layer_takes_as_much_from_each(budget_options: Any, synthetic_adapter: Any) -> None:
    found, _ = run(make(budget_options, synthetic_adapter, "per_layer"))
    assert found.mask.view(2, 4).sum(1).tolist() == [2, 2]


def test_whole_layers_are_groups_of_one_unit(budget_options: Any, synthetic_adapter: Any) -> None:
    problem = make(budget_options, synthetic_adapter)
    space = Space(tuple(Group(layer, "layer", 1) for layer in range(8)))
    found, _ = run(replace(problem, space=space))
    assert set((~found.mask).nonzero().flatten().tolist()) == set(by_hand(4))


def test_a_loss_that_is_not_a_number_is_never_chosen(budget_options: Any, synthetic_adapter: Any) -> None:
    def broken(masks: Tensor, rows: Tensor) -> Tensor:
        return torch.where(masks[:, 1] > 0, evaluate(masks, rows), torch.nan)

    found, _ = run(replace(make(budget_options, synthetic_adapter), evaluate=broken))
    assert found.mask[1]
