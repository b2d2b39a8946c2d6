"""From scores to a mask: the budget is met, the best units stay, and what rounding leaves goes as in a plain loop."""

import math
import time
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from policyprune.errors import UsageError
from policyprune.pruning.budget import selection
from policyprune.pruning.budget.block_latency import BlockLatency
from policyprune.pruning.budget.budget import Budget, make_budget
from policyprune.pruning.budget.costs import FixedCosts
from policyprune.pruning.budget.selection import SLACK, Items, items_of, select
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


ALL = ["attention", "ffn", "attention_block", "ffn_block", "layer"]
UNITS = [["attention", "ffn"], ["ffn"], ["layer"], ["attention_block", "ffn"], ALL]
LATENCY = BlockLatency(0.05, {"attention": 0.11, "ffn": 0.07}, {"attention": 0.06, "ffn": 0.013})


def fill_one_by_one(mask: Tensor, items: Items, budget: Budget) -> None:
    """The loop that the rounds stand for."""
    closed = budget.space.closed(mask) if budget.space else mask
    left = (budget.pool_limit - budget.spent(closed)).tolist()
    per_layer = len(budget.limit) != len(budget.pool_limit)
    paid: set[int] = {0}
    if budget.fixed is not None:
        paid |= set(budget.fixed.of_decision[mask].flatten().tolist())
    taken = mask[items.first]
    cheapest = float(items.cost.min()) if len(items.cost) else 0.0
    topped: set[int] = set()
    for item in torch.argsort(torch.where(taken, -torch.inf, items.score), descending=True, stable=True).tolist():
        if max(left) < cheapest * (1 - SLACK):
            break
        first = int(items.first[item])
        pool, segment, cost = int(budget.pool[first]), int(budget.segment[first]), float(items.cost[item])
        new = set(budget.fixed.of_decision[first].tolist()) - paid if budget.fixed is not None else set()
        if new:
            assert budget.fixed is not None
            cost += sum(float(budget.fixed.cost[index]) for index in new)
        if taken[item] or cost > left[pool] + SLACK * min(1.0, cheapest) or (per_layer and segment in topped):
            continue
        mask[items.members[item]] = True
        left[pool] -= cost
        paid |= new
        topped.add(segment)


def equal_one_by_one(mask: Tensor, items: Items, budget: Budget) -> None:
    """One unit more in every block of a kind, as long as that fits."""
    space = budget.space
    assert space is not None
    block = space.group_of[items.first]
    order = torch.argsort(items.score, descending=True, stable=True)
    ranked = {i: order[block[order] == i] for i in range(len(space.groups))}
    kinds = sorted({group.kind for group in space.groups}, reverse=True)
    of_kind = {kind: [i for i, group in enumerate(space.groups) if group.kind == kind] for kind in kinds}

    def worn(counts: dict[str, int]) -> Tensor:
        found = torch.zeros_like(mask)
        for kind in kinds:
            for i in of_kind[kind]:
                found[items.members[ranked[i][: counts[kind]]].flatten()] = True
        return found

    counts = {}
    for kind in kinds:
        fitting = []
        for i in of_kind[kind]:
            cost = items.cost[ranked[i]] + items.fixed_costs(ranked[i], budget)
            fitting.append(int((cost.cumsum(0) <= budget.limit[i] * (1 + 1e-9)).sum()))
        counts[kind] = min(fitting)
    for kind in kinds:
        while True:
            more = {**counts, kind: counts[kind] + 1}
            short = any(len(ranked[i]) < more[kind] for i in of_kind[kind])
            if short or bool((budget.spent(worn(more)) > budget.pool_limit * (1 + 1e-9)).any()):
                break
            counts = more
    mask |= worn(counts)


@st.composite
def cases(draw: Any) -> dict[str, Any]:
    alike = draw(st.booleans())
    pairs = st.tuples(st.integers(1, 5), st.integers(2, 20))
    counts = [draw(pairs)] * draw(st.integers(1, 5)) if alike else draw(st.lists(pairs, min_size=1, max_size=5))
    scope = draw(st.sampled_from(["global", "per_layer", "uniform"] if alike else ["global", "per_layer"]))
    return {
        "counts": counts,
        "scope": scope,
        "units": draw(st.sampled_from(UNITS if scope == "global" else UNITS[:2])),
        "name": draw(st.sampled_from(["rate", "params", "flops", "latency"])),
        "keep": draw(st.floats(0.1, 1)),
        "align": draw(st.sampled_from([None, None, 2])),
        "scores": draw(st.integers(0, 10_000)),
        "levels": draw(st.sampled_from([3, 1000])),  # few make ties
    }


@given(case=cases())
def test_the_mask_is_that_of_a_loop(synthetic_adapter: Any, budget_options: Any, case: dict[str, Any]) -> None:
    adapter = synthetic_adapter(case["counts"])
    space = space_of(adapter, case["units"])
    config = budget_options(case["name"], case["keep"], scope=case["scope"])
    try:
        budget = make_budget(config, adapter, space, LATENCY, case["align"])
    except UsageError:
        assume(False)
    generator = torch.Generator().manual_seed(case["scores"])
    scores = torch.randint(0, case["levels"], (space.n,), generator=generator).double()
    with patch.object(selection, "_fill", fill_one_by_one), patch.object(selection, "_take_equal", equal_one_by_one):
        expected = select(scores, budget)
    assert torch.equal(select(scores, budget), expected)


@given(seed=st.integers(0, 10_000), layers=st.integers(1, 6), per_layer=st.booleans(), room=st.floats(0, 40))
def test_from_nothing_with_costs_and_fixed_costs_of_all_sizes(
    synthetic_adapter: Any, seed: int, layers: int, per_layer: bool, room: float
) -> None:
    """All is left to fill: costs differ from unit to unit, and blocks and layers cost once."""
    space = space_of(synthetic_adapter([(3, 9)] * layers), ["attention", "ffn"])
    generator = torch.Generator().manual_seed(seed)
    none = torch.zeros(space.n, dtype=torch.long)
    layer_of = torch.tensor([group.layer for group in space.groups])[space.group_of]
    of_decision = torch.stack([1 + space.group_of, 1 + len(space.groups) + layer_of], 1)
    segment = space.group_of if per_layer else none
    budget = Budget(
        cost=torch.randint(1, 9, (space.n,), generator=generator).double() / 4,
        segment=segment,
        limit=torch.zeros(int(segment.max()) + 1, dtype=torch.float64),
        pool=none,
        pool_limit=torch.tensor([room], dtype=torch.float64),
        keep=0.5,
        space=space,
        fixed=FixedCosts(
            torch.randint(0, 5, (1 + 3 * layers,), generator=generator).double().index_fill(0, none[:1], 0.0),
            of_decision,
            torch.full((1 + 3 * layers,), -1),
        ),
    )
    scores = torch.rand(space.n, generator=generator, dtype=torch.float64)
    found, expected = torch.zeros(space.n, dtype=torch.bool), torch.zeros(space.n, dtype=torch.bool)
    selection._fill(found, items_of(scores, budget), budget)
    fill_one_by_one(expected, items_of(scores, budget), budget)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("scope", ["per_layer", "uniform"])
def test_a_model_of_7_billion_parameters_takes_no_seconds(
    synthetic_adapter: Any, budget_options: Any, scope: str
) -> None:
    """353,280 units: 0.1 s of a core where the loop took 4 to 8; the bound leaves room for a busy machine."""
    adapter = synthetic_adapter([(32, 11008)] * 32)
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(budget_options("params", 0.7, scope=scope), adapter, space)
    scores = torch.rand(space.n)
    select(scores, budget)
    start = time.process_time()
    select(scores, budget)
    assert time.process_time() - start < 1
