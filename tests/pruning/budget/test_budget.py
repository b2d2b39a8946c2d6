"""What a budget allows, in each of its units."""

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policyprune.errors import UsageError
from policyprune.pruning.budget.budget import Budget, make_budget
from policyprune.pruning.space import space_of

COUNTS = [(4, 10), (4, 10), (2, 7)]
ATTENTION, FFN, FIXED = 70, 9, 31  # parameters, as in conftest.py
LENGTH = 10
MACS = {"attention": LENGTH * 69 + 2 * LENGTH * LENGTH * 3, "ffn": LENGTH * 8}
HEADS, CHANNELS = 10, 27


def test_rate_counts_units_of_each_kind_by_themselves(synthetic_adapter: Any, budget_options: Any) -> None:
    adapter = synthetic_adapter(COUNTS)
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(budget_options("rate", 0.6), adapter, space)
    assert budget.cost.tolist() == [1.0] * space.n
    assert budget.pool_limit.tolist() == [6, 16]  # 6.0 and 16.2, in whole units
    assert budget.spent(torch.ones(space.n)).tolist() == [HEADS, CHANNELS]


def test_params_are_those_of_the_blocks_norms_included(synthetic_adapter: Any, budget_options: Any) -> None:
    adapter = synthetic_adapter(COUNTS)
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(budget_options("params", 0.5), adapter, space)
    total = HEADS * ATTENTION + CHANNELS * FFN + FIXED
    assert budget.pool_limit.tolist() == [pytest.approx(0.5 * total - FIXED)]
    assert budget.spent(torch.ones(space.n)).item() == total - FIXED


def test_flops_are_taken_at_the_stated_length(synthetic_adapter: Any, budget_options: Any) -> None:
    adapter = synthetic_adapter(COUNTS)
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(budget_options("flops", 0.7, sequence_length=LENGTH), adapter, space)
    total = HEADS * MACS["attention"] + CHANNELS * MACS["ffn"]
    assert budget.pool_limit.tolist() == [pytest.approx(0.7 * total)]
    for (_, kind), view in space.views(budget.cost).items():
        assert set(view.tolist()) == {MACS[kind]}


@pytest.mark.parametrize(("name", "heads", "channel", "fixed"), [("params", 700, 9, 31), ("flops", 12900, 80, 0)])
def test_what_is_not_pruned_is_paid_first(
    synthetic_adapter: Any, budget_options: Any, name: str, heads: int, channel: int, fixed: int
) -> None:
    adapter = synthetic_adapter(COUNTS)
    budget = make_budget(budget_options(name, 0.99), adapter, space_of(adapter, ["ffn"]))
    total = heads + CHANNELS * channel + fixed
    assert budget.pool_limit.tolist() == [pytest.approx(0.99 * total - heads - fixed)]
    assert budget.cost.tolist() == [channel] * CHANNELS


@pytest.mark.parametrize("name", ["rate", "params", "flops"])
def test_per_layer_gives_each_block_the_same_share(synthetic_adapter: Any, budget_options: Any, name: str) -> None:
    adapter = synthetic_adapter(COUNTS)
    space = space_of(adapter, ["attention", "ffn"])
    whole = make_budget(budget_options(name, 0.5), adapter, space)
    budget = make_budget(budget_options(name, 0.5, scope="per_layer"), adapter, space)
    assert torch.equal(budget.segment, space.group_of)
    assert torch.equal(budget.pool_limit, whole.pool_limit)
    shares = budget.pool_limit / budget.spent(torch.ones(space.n))
    for index, view in enumerate(space.views(budget.cost).values()):
        pool = int(budget.pool[budget.segment == index][0])
        assert budget.limit[index].item() == pytest.approx(float(shares[pool] * view.sum()))


@pytest.mark.parametrize("name", ["rate", "params", "flops"])
def test_keep_one_is_the_dense_model(synthetic_adapter: Any, budget_options: Any, name: str) -> None:
    adapter = synthetic_adapter(COUNTS)
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(budget_options(name, 1.0), adapter, space)
    assert budget.pool_limit.tolist() == pytest.approx(budget.spent(torch.ones(space.n)).tolist())


counts = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 40)), min_size=1, max_size=4)


@given(counts=counts, name=st.sampled_from(["params", "flops"]), unit=st.sampled_from(["attention", "ffn"]))
def test_an_impossible_budget_names_the_smallest_possible_one(
    synthetic_adapter: Any, budget_options: Any, counts: list[tuple[int, int]], name: str, unit: str
) -> None:
    adapter = synthetic_adapter(counts)
    space = space_of(adapter, [unit])
    with pytest.raises(UsageError, match=rf"budget\.keep: 0\.001 of the {name}.*granularity {unit}") as raised:
        make_budget(budget_options(name, 0.001), adapter, space)
    stated = re.search(r"at least (\d\.\d+) can be met", str(raised.value))
    assert stated is not None
    smallest = float(stated[1])
    assert make_budget(budget_options(name, smallest), adapter, space).pool_limit.item() >= 0
    with pytest.raises(UsageError):
        make_budget(budget_options(name, smallest - 2e-4), adapter, space)


def relaxed_limits(budget: Budget, keep: float) -> tuple[list[float], list[float]]:
    relaxed = budget.relaxed(keep)
    return relaxed.limit.tolist(), relaxed.pool_limit.tolist()


@pytest.mark.parametrize("scope", ["global", "per_layer"])
@pytest.mark.parametrize("name", ["rate", "flops"])
def test_relaxed_goes_from_this_budget_to_the_dense_model(
    synthetic_adapter: Any, budget_options: Any, name: str, scope: str
) -> None:
    adapter = synthetic_adapter(COUNTS)
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(budget_options(name, 0.4, scope=scope), adapter, space)
    dense = make_budget(budget_options(name, 1.0, scope=scope), adapter, space)
    assert relaxed_limits(budget, 0.4) == (budget.limit.tolist(), budget.pool_limit.tolist())
    assert torch.allclose(budget.relaxed(1.0).limit, dense.limit)
    assert torch.allclose(budget.relaxed(1.0).pool_limit, dense.pool_limit)
    assert torch.allclose(budget.relaxed(0.7).limit, (budget.limit + dense.limit) / 2)
    assert budget.relaxed(0.7).keep == 0.7


def test_relaxing_a_dense_budget_changes_nothing(synthetic_adapter: Any, budget_options: Any) -> None:
    adapter = synthetic_adapter(COUNTS)
    budget = make_budget(budget_options("rate", 1.0), adapter, space_of(adapter, ["ffn"]))
    assert relaxed_limits(budget, 1.0) == ([CHANNELS], [CHANNELS])
