"""From scores to a mask: the budget is met, and the best units are the ones that stay."""

import math
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from policyprune.pruning.budget.budget import Budget, make_budget
from policyprune.pruning.budget.selection import select
from policyprune.pruning.space import space_of

counts = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 20)), min_size=1, max_size=4)
seeds = st.integers(0, 10_000)
keeps = st.floats(0.05, 1)


def budget_of(adapters: Any, options: Any, counts: Any, name: str, keep: float, scope: str = "global") -> Budget:
    adapter = adapters(counts)
    return make_budget(options(name, keep, scope=scope), adapter, space_of(adapter, ["attention", "ffn"]))


@given(counts=counts, seed=seeds, keep=keeps)
def test_a_global_rate_is_met_exactly_by_the_best_of_each_kind(
    synthetic_adapter: Any, budget_options: Any, random_scores: Any, counts: Any, seed: int, keep: float
) -> None:
    budget = budget_of(synthetic_adapter, budget_options, counts, "rate", keep)
    scores = random_scores(len(budget.cost), seed)
    mask = select(scores, budget)
    assert mask.dtype == torch.bool
    assert budget.spent(mask).tolist() == budget.pool_limit.tolist()
    for pool in (0, 1):
        kept, dropped = scores[mask & (budget.pool == pool)], scores[~mask & (budget.pool == pool)]
        assert not len(kept) or not len(dropped) or kept.min() >= dropped.max()


@given(layers=st.integers(1, 5), units=st.tuples(st.integers(1, 8), st.integers(1, 20)), seed=seeds, keep=keeps)
def test_a_rate_per_layer_gives_each_of_equal_blocks_its_share(
    synthetic_adapter: Any,
    budget_options: Any,
    random_scores: Any,
    layers: int,
    units: tuple[int, int],
    seed: int,
    keep: float,
) -> None:
    budget = budget_of(synthetic_adapter, budget_options, [units] * layers, "rate", keep, scope="per_layer")
    scores = random_scores(len(budget.cost), seed)
    mask = select(scores, budget)
    assert budget.spent(mask).tolist() == budget.pool_limit.tolist()
    for index, share in enumerate(budget.limit.tolist()):
        own = budget.segment == index
        assert math.floor(share + 1e-9) <= int(mask[own].sum()) <= math.ceil(share - 1e-9)
        kept, dropped = scores[own & mask], scores[own & ~mask]
        assert not len(kept) or not len(dropped) or kept.min() >= dropped.max()


@given(counts=counts, seed=seeds, keep=keeps)
def test_a_rate_per_layer_is_met_exactly_with_unequal_blocks_too(
    synthetic_adapter: Any, budget_options: Any, random_scores: Any, counts: Any, seed: int, keep: float
) -> None:
    budget = budget_of(synthetic_adapter, budget_options, counts, "rate", keep, scope="per_layer")
    mask = select(random_scores(len(budget.cost), seed), budget)
    assert budget.spent(mask).tolist() == budget.pool_limit.tolist()
    for index, share in enumerate(budget.limit.tolist()):
        kept = int(mask[budget.segment == index].sum())
        assert math.floor(share + 1e-9) <= kept <= math.floor(share + 1e-9) + 1


@given(counts=counts, seed=seeds, keep=keeps, name=st.sampled_from(["flops", "params"]))
def test_a_global_budget_of_unequal_costs_is_used_up_and_never_exceeded(
    synthetic_adapter: Any, budget_options: Any, random_scores: Any, counts: Any, seed: int, keep: float, name: str
) -> None:
    keep = max(keep, 0.3)  # below, the norms alone take more than the parameters
    budget = budget_of(synthetic_adapter, budget_options, counts, name, keep)
    scores = random_scores(len(budget.cost), seed)
    mask = select(scores, budget)
    left = (budget.pool_limit - budget.spent(mask)).item()
    assert left >= -1e-6
    assert mask.all() or budget.cost[~mask].min() > left
    for cost in budget.cost.unique():
        kept, dropped = scores[mask & (budget.cost == cost)], scores[~mask & (budget.cost == cost)]
        assert not len(kept) or not len(dropped) or kept.min() >= dropped.max()


@given(counts=counts, seed=seeds, keep=keeps)
def test_flops_per_layer_are_never_exceeded(
    synthetic_adapter: Any, budget_options: Any, random_scores: Any, counts: Any, seed: int, keep: float
) -> None:
    budget = budget_of(synthetic_adapter, budget_options, counts, "flops", keep, scope="per_layer")
    mask = select(random_scores(len(budget.cost), seed), budget)
    assert (budget.spent(mask) <= budget.pool_limit + 1e-6).all()
    for index, share in enumerate(budget.limit.tolist()):
        own = budget.segment == index
        price = budget.cost[own][0].item()
        assert math.floor(share / price + 1e-9) <= int(mask[own].sum()) <= math.floor(share / price + 1e-9) + 1


def test_of_equal_scores_the_first_units_stay(segments_budget: Any) -> None:
    budget = segments_budget(torch.ones(5), torch.zeros(5, dtype=torch.long), torch.tensor([2.0]))
    assert select(torch.ones(5), budget).tolist() == [True, True, False, False, False]


def test_a_unit_too_dear_lets_a_cheaper_one_in(segments_budget: Any) -> None:
    budget = segments_budget(torch.tensor([2.0, 4.0, 1.0]), torch.zeros(3, dtype=torch.long), torch.tensor([3.0]))
    assert select(torch.tensor([0.9, 0.8, 0.1]), budget).tolist() == [True, False, True]
