"""Decisions on heads, channels, blocks and layers in one space: what they mean, what they cost, what is selected."""

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from policyprune.errors import UsageError
from policyprune.models.adapter import Adapter
from policyprune.pruning.budget.block_latency import BlockLatency
from policyprune.pruning.budget.budget import Budget, make_budget
from policyprune.pruning.budget.projection import project
from policyprune.pruning.budget.selection import select
from policyprune.pruning.importance.data_free import Constant
from policyprune.pruning.importance.initialisation import initial_probabilities
from policyprune.pruning.optimizers.kwon import best_split
from policyprune.pruning.optimizers.problem import Problem
from policyprune.pruning.space import Space, space_of

ALL = ("attention", "ffn", "attention_block", "ffn_block", "layer")
BLOCKS = ("attention_block", "ffn_block")
SPACES = [ALL, BLOCKS, ("layer",), (*BLOCKS, "layer"), ("attention", "ffn_block"), ("attention", "ffn", "layer")]
LATENCY = BlockLatency(0.02, {"attention": 0.03, "ffn": 0.05}, {"attention": 0.05, "ffn": 0.01})
counts = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 20)), min_size=1, max_size=4)
seeds = st.integers(0, 10_000)
units = st.sampled_from(SPACES)


def expanded(space: Space, mask: Tensor) -> dict[tuple[int, str], list[bool]]:
    """What is left of each block, by going through the decisions one by one."""
    own = {key: view.tolist() for key, view in space.views(mask).items()}
    left = {}
    for group in space.units.groups:
        gates = [own.get((group.layer, kind), [True])[0] for kind in (f"{group.kind}_block", "layer")]
        single = own.get((group.layer, group.kind), [True] * group.count)
        left[group.layer, group.kind] = [bool(unit and all(gates)) for unit in single]
    return left


def true_cost(name: str, adapter: Adapter, left: dict[tuple[int, str], list[bool]], with_norms: bool) -> float:
    """Cost of what remains, counted from the adapter without the budget's code."""
    total = 0.0
    for block in adapter.blocks:
        kept = sum(left[block.layer, block.kind])
        if name == "latency":
            total += kept * LATENCY.unit[block.kind] + (LATENCY.fixed[block.kind] if kept else 0)
        else:
            total += kept * (block.params_per_unit if name == "params" else block.macs(10))
    alive = len({layer for (layer, _), own in left.items() if any(own)})
    once = LATENCY.layer if name == "latency" else adapter.fixed_params / len(adapter.layers) if with_norms else 0.0
    return total + alive * once


@given(counts=counts, kinds=units, seed=seeds)
def test_a_unit_is_kept_when_all_decisions_above_it_are(
    synthetic_adapter: Any, counts: Any, kinds: Any, seed: int
) -> None:
    space = space_of(synthetic_adapter(counts), kinds)
    mask = torch.rand(space.n, generator=torch.Generator().manual_seed(seed)) < 0.7
    left = space.units.views(space.expand(mask))
    assert {key: view.tolist() for key, view in left.items()} == expanded(space, mask)
    closed = space.closed(mask & (space.joint(mask.float()) > 0))
    assert torch.equal(space.expand(closed), space.expand(mask))


def test_what_decides_on_many_units_has_the_sum_of_their_scores(synthetic_adapter: Any) -> None:
    space = space_of(synthetic_adapter([(2, 3), (1, 2)]), ALL)
    pooled = space.views(space.pooled(torch.arange(8.0)))
    assert [pooled[0, kind].tolist() for kind in ALL] == [[0, 1], [2, 3, 4], [1], [9], [10]]
    assert [pooled[1, kind].tolist() for kind in ALL] == [[5], [6, 7], [5], [13], [18]]


@given(counts=counts, kinds=units, seed=seeds, keep=st.floats(0.2, 1), name=st.sampled_from(["params", "flops"]))
def test_the_cost_of_a_mask_is_that_of_what_remains(
    synthetic_adapter: Any, budget_options: Any, counts: Any, kinds: Any, seed: int, keep: float, name: str
) -> None:
    adapter = synthetic_adapter(counts)
    space = space_of(adapter, kinds)
    try:
        budget = make_budget(budget_options(name, keep), adapter, space)
    except UsageError:
        return  # the norms alone take more
    scores = torch.rand(space.n, generator=torch.Generator().manual_seed(seed))
    for mask in (scores < 0.6, select(scores, budget)):
        cost = true_cost(name, adapter, expanded(space, mask), with_norms=name == "params" and "layer" in kinds)
        assert budget.spent(mask).item() == pytest.approx(cost)
    assert cost <= budget.pool_limit.item() + 1e-6


@given(counts=counts, kinds=units, seed=seeds, keep=st.floats(0.1, 0.95))
def test_a_latency_budget_is_affine_in_what_remains_and_used_up(
    synthetic_adapter: Any, budget_options: Any, counts: Any, kinds: Any, seed: int, keep: float
) -> None:
    adapter = synthetic_adapter(counts)
    space = space_of(adapter, kinds)
    budget = make_budget(budget_options("latency", keep), adapter, space, LATENCY)
    mask = select(torch.rand(space.n, generator=torch.Generator().manual_seed(seed)), budget)
    spent = true_cost("latency", adapter, expanded(space, mask), with_norms=True)
    assert budget.spent(mask).item() == pytest.approx(spent)
    limit = keep * len(counts)
    assert spent <= limit + 1e-9
    if not mask.all():  # no unit of a block that is open already would fit
        for group, view in zip(space.groups, space.views(mask).values(), strict=True):
            if group.kind in LATENCY.unit and 0 < int(view.sum()) < group.count:
                assert LATENCY.unit[group.kind] > limit - spent - 1e-9


@given(counts=counts, kinds=units, seed=seeds, keep=st.floats(0.1, 0.95), name=st.sampled_from(["latency", "rate"]))
def test_projection_puts_the_bound_of_the_expected_cost_on_the_budget(
    synthetic_adapter: Any, budget_options: Any, counts: Any, kinds: Any, seed: int, keep: float, name: str
) -> None:
    adapter = synthetic_adapter(counts)
    space = space_of(adapter, kinds)
    budget = make_budget(budget_options(name, keep), adapter, space, LATENCY)
    z = torch.rand(space.n, generator=torch.Generator().manual_seed(seed)).double()
    s = project(z, budget, "equality")
    assert bool(((s >= 0) & (s <= 1)).all())
    possible = torch.minimum(budget.pool_limit, budget.spent(torch.where(space.finest, 1.0, s)))
    assert torch.allclose(budget.spent(s), possible, rtol=1e-5, atol=1e-6)
    inside = project(0.05 * s, budget, "cap")
    assert torch.equal(inside, 0.05 * s)


def test_the_bound_is_no_less_than_the_expected_cost(synthetic_adapter: Any, budget_options: Any) -> None:
    adapter = synthetic_adapter([(2, 2)])
    space = space_of(adapter, ALL)
    budget = make_budget(budget_options("latency", 0.9), adapter, space, LATENCY)
    s = torch.rand(space.n, dtype=torch.float64)
    masks = torch.tensor(list(product([0.0, 1.0], repeat=space.n)), dtype=torch.float64)
    chance = (masks * s + (1 - masks) * (1 - s)).prod(1)
    expected = sum(float(p) * float(budget.spent(m)) for p, m in zip(chance, masks, strict=True))
    assert expected <= float(budget.spent(s)) <= 1.5 * expected


@given(
    layers=st.integers(1, 4),
    align=st.sampled_from([1, 2, 3, 8]),
    seed=seeds,
    keep=st.floats(0.3, 1),
    name=st.sampled_from(["rate", "params", "flops", "latency"]),
    scope=st.sampled_from(["global", "per_layer", "uniform"]),
)
def test_aligned_and_equal_widths_are_inside_the_budget(
    synthetic_adapter: Any,
    budget_options: Any,
    layers: int,
    align: int,
    seed: int,
    keep: float,
    name: str,
    scope: str,
) -> None:
    adapter = synthetic_adapter([(6, 26)] * layers)
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(budget_options(name, keep, scope=scope), adapter, space, LATENCY, align)
    scores = torch.rand(space.n, generator=torch.Generator().manual_seed(seed))
    found = [select(scores, budget)]
    if scope == "global":
        found.append(best_split(scores, space, budget))
    for mask in found:
        assert (budget.spent(mask) <= budget.pool_limit * (1 + 1e-9)).all()
        widths = {"attention": set(), "ffn": set()}
        for (_, kind), view in space.views(mask).items():
            widths[kind].add(int(view.sum()))
        assert all(width % align == 0 for width in widths["ffn"])
        assert all(width % align == 0 for width in widths["attention"]) or 6 % align
        if scope == "uniform":
            assert len(widths["attention"]) == len(widths["ffn"]) == 1


@pytest.mark.parametrize("name", ["rate", "flops"])
def test_equal_widths_use_up_what_all_layers_can_have_alike(
    synthetic_adapter: Any, budget_options: Any, name: str
) -> None:
    adapter = synthetic_adapter([(6, 26)] * 3)
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(budget_options(name, 0.6, scope="uniform"), adapter, space)
    mask = select(torch.rand(space.n), budget)
    left = budget.pool_limit - budget.spent(mask)
    assert float(left[-1]) < 3 * float(budget.cost.min())


def test_widths_cannot_be_equal_where_they_are_not(synthetic_adapter: Any, budget_options: Any) -> None:
    adapter = synthetic_adapter([(4, 10), (4, 8)])
    with pytest.raises(UsageError, match=r"budget\.scope: uniform"):
        make_budget(budget_options("rate", 0.5, scope="uniform"), adapter, space_of(adapter, ["ffn"]))


def test_an_alignment_wider_than_the_model_is_refused(synthetic_adapter: Any, budget_options: Any) -> None:
    adapter = synthetic_adapter([(4, 10)])
    with pytest.raises(UsageError, match=r"granularity\.align: 32 is more than the width 10"):
        make_budget(budget_options("rate", 0.5), adapter, space_of(adapter, ["ffn"]), align=32)


def synthetic_problem(adapter: Adapter, options: Any, keep: float) -> tuple[Problem, Any]:
    """Layer 1 does harm unless it is whole or gone; everything else has a worth of its own."""
    space = space_of(adapter, ALL)
    budget = make_budget(options("flops", keep), adapter, space)
    per_layer = space.units.n // len(adapter.layers)
    worth = torch.linspace(0.4, 0.9, space.units.n)

    def loss(units: Tensor) -> Tensor:
        layers = units.view(-1, len(adapter.layers), per_layer)
        missing = ((1 - layers) * worth.view(len(adapter.layers), per_layer)).sum(2)
        gone = (layers[:, 1].sum(1) == 0).float()
        return missing[:, 0] + missing[:, 2] + (1 - gone) * missing[:, 1] + 0.1 * gone

    importance = space.pooled(worth)
    start = initial_probabilities(torch.ones(space.n), space, budget, Constant())
    lengths = torch.ones(20, dtype=torch.long)
    evaluate = lambda masks, rows: loss(space.expand(masks)).expand(len(rows)) + 2  # noqa: E731
    return Problem(evaluate, space, budget, importance, start, lengths, seed=0), loss


def best_mask(problem: Problem, loss: Any) -> float:
    """Least loss of all masks of units within the budget."""
    units = torch.tensor(list(product([0.0, 1.0], repeat=problem.space.units.n)))
    prices = problem.budget.cost[problem.space.finest]
    return float(loss(units[(units.double() @ prices) <= problem.budget.pool_limit.item() + 1e-6]).min())


def test_the_search_drops_the_layer_that_is_best_dropped(
    synthetic_adapter: Any, budget_options: Any, search_options: Any
) -> None:
    problem, loss = synthetic_problem(synthetic_adapter([(1, 3)] * 3), budget_options, keep=0.67)
    config = search_options(steps=250, masks=4, learning_rate=0.05)
    found = config.search(problem, lambda step: None)
    kept = problem.space.expand(found.mask)
    assert problem.space.units.views(kept)[1, "ffn"].sum() == 0
    assert float(loss(kept.float()[None])) == pytest.approx(best_mask(problem, loss))


def test_start_spends_the_budget_and_trusts_the_gates(synthetic_adapter: Any, budget_options: Any) -> None:
    problem, _ = synthetic_problem(synthetic_adapter([(2, 5)] * 3), budget_options, keep=0.6)
    assert bool((problem.start[~problem.space.finest] >= 0.9).all())
    assert torch.allclose(problem.budget.spent(problem.start), problem.budget.pool_limit, rtol=1e-4)


def test_a_budget_says_what_it_promises_when_it_is_relaxed(synthetic_adapter: Any, budget_options: Any) -> None:
    adapter = synthetic_adapter([(2, 5)] * 3)
    budget: Budget = make_budget(budget_options("latency", 0.5), adapter, space_of(adapter, ALL), LATENCY)
    assert torch.allclose(budget.relaxed(1.0).pool_limit, budget.spent(torch.ones_like(budget.cost)))
    assert torch.equal(budget.relaxed(0.5).pool_limit, budget.pool_limit)
