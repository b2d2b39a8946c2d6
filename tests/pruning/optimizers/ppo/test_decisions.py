"""Decisions over several units: how they are grouped, and the masks that actions give."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.optimizers.ppo.decisions import Decisions, make_decisions
from policyprune.pruning.space import Space, space_of

COUNTS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 20)), min_size=1, max_size=3)
SEEDS = st.integers(0, 1000)
CHUNKS = st.integers(1, 8)


def uniform(n: int, seed: int) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed))


def setting(
    counts: Any, chunk: int, seed: int, adapter_of: Any, options: Any, name: str = "flops", keep: float = 0.5
) -> tuple[Space, Tensor, Decisions]:
    adapter = adapter_of(counts)
    space = space_of(adapter, ["attention", "ffn"])
    importance = uniform(space.n, seed)
    return space, importance, make_decisions(importance, space, make_budget(options(name, keep), adapter, space), chunk)


@given(counts=COUNTS, chunk=CHUNKS, seed=SEEDS)
def test_every_head_decides_for_itself_and_channels_in_chunks(
    synthetic_adapter: Any, budget_options: Any, counts: Any, chunk: int, seed: int
) -> None:
    space, _, decisions = setting(counts, chunk, seed, synthetic_adapter, budget_options)
    sizes = torch.bincount(decisions.of, minlength=decisions.count)
    expected = []
    for group in space.groups:
        size = 1 if group.kind == "attention" else chunk
        expected += [size] * (group.count // size) + ([group.count % size] if group.count % size else [])
    assert sizes.tolist() == expected
    assert torch.equal(decisions.block[decisions.of], space.group_of)
    kinds = [space.groups[block].kind for block in decisions.block.tolist()]
    assert decisions.channels.tolist() == [kind == "ffn" for kind in kinds]
    assert bool(((decisions.depth >= 0) & (decisions.depth <= 1)).all())


@given(counts=COUNTS, chunk=CHUNKS, seed=SEEDS)
def test_chunks_are_of_neighbouring_importance(
    synthetic_adapter: Any, budget_options: Any, counts: Any, chunk: int, seed: int
) -> None:
    _, importance, decisions = setting(counts, chunk, seed, synthetic_adapter, budget_options)
    for decision in range(decisions.count - 1):
        if decisions.block[decision] == decisions.block[decision + 1]:
            assert float(importance[decisions.of == decision].min()) >= float(
                importance[decisions.of == decision + 1].max()
            )
    for decision in range(decisions.count):
        own = (decisions.of == decision).nonzero().flatten()
        by_rank = own[decisions.rank[own].argsort()]
        assert sorted(decisions.rank[own].tolist()) == list(range(len(own)))
        assert importance[by_rank].tolist() == sorted(importance[own].tolist(), reverse=True)


@given(counts=COUNTS, chunk=CHUNKS, seed=SEEDS)
def test_cost_is_that_of_the_units_and_importance_is_standardised(
    synthetic_adapter: Any, budget_options: Any, counts: Any, chunk: int, seed: int
) -> None:
    _, _, decisions = setting(counts, chunk, seed, synthetic_adapter, budget_options)
    for decision in range(decisions.count):
        expected = float(decisions.budget.cost[decisions.of == decision].sum())
        assert float(decisions.cost[decision]) == pytest.approx(expected)
    for classes, values in (
        (decisions.channels.long(), decisions.importance),
        (decisions.block, decisions.block_importance),
    ):
        for index in classes.unique():
            own = values[classes == index].double()
            assert float(own.mean()) == pytest.approx(0, abs=1e-4)
            assert float(own.square().mean()) == pytest.approx(1, abs=1e-3) or float(own.abs().max()) < 1e-3


@given(counts=COUNTS, chunk=CHUNKS, seed=SEEDS)
def test_share_is_the_kept_part_of_each_decision(
    synthetic_adapter: Any, budget_options: Any, counts: Any, chunk: int, seed: int
) -> None:
    space, _, decisions = setting(counts, chunk, seed, synthetic_adapter, budget_options)
    mask = uniform(space.n, seed + 1) < 0.5
    expected = [float(mask[decisions.of == decision].double().mean()) for decision in range(decisions.count)]
    assert decisions.share(mask).tolist() == pytest.approx(expected)
    assert decisions.share(torch.ones(space.n, dtype=torch.bool)).tolist() == [1.0] * decisions.count


@pytest.mark.parametrize("name", ["flops", "rate"])
@given(counts=COUNTS, chunk=CHUNKS, seed=SEEDS, keep=st.floats(0.05, 1), density=st.sampled_from([0.0, 0.3, 0.9, 1.0]))
def test_the_mask_of_any_action_meets_the_budget(
    synthetic_adapter: Any,
    budget_options: Any,
    name: str,
    counts: Any,
    chunk: int,
    seed: int,
    keep: float,
    density: float,
) -> None:
    space, _, decisions = setting(counts, chunk, seed, synthetic_adapter, budget_options, name, keep)
    action = (uniform(decisions.count, seed + 1) < density).float()
    mask = decisions.mask(action, uniform(decisions.count, seed + 2))
    budget = decisions.budget
    spent = budget.spent(mask)
    assert (mask.dtype, mask.shape) == (torch.bool, (space.n,))
    if name == "rate":
        assert spent.tolist() == budget.pool_limit.tolist()
        return
    assert float(spent) <= float(budget.pool_limit) + 1e-5
    left = float(budget.pool_limit - spent)
    assert not (budget.cost[~mask] <= left - 1e-5).any(), "a pruned unit would still fit"


@given(counts=COUNTS, chunk=CHUNKS, seed=SEEDS, keep=st.floats(0.1, 0.9))
def test_what_was_decided_goes_first_then_the_probable_and_the_important(
    synthetic_adapter: Any, budget_options: Any, counts: Any, chunk: int, seed: int, keep: float
) -> None:
    _space, _, decisions = setting(counts, chunk, seed, synthetic_adapter, budget_options, "rate", keep)
    action = (uniform(decisions.count, seed + 1) < 0.5).float()
    probabilities = uniform(decisions.count, seed + 2)
    mask = decisions.mask(action, probabilities)
    order = [(float(action[d]), float(probabilities[d])) for d in range(decisions.count)]
    for pool in decisions.budget.pool.unique():
        own = decisions.budget.pool == pool
        kept, pruned = (set(decisions.of[own & part].tolist()) for part in (mask, ~mask))
        for low, high in ((low, high) for low in kept for high in pruned if low != high):
            assert order[low] >= order[high], "a worse decision was preferred"
    for decision in range(decisions.count):
        own = (decisions.of == decision).nonzero().flatten()
        kept_ranks = sorted(decisions.rank[own[mask[own]]].tolist())
        assert kept_ranks == list(range(len(kept_ranks)))


@given(counts=COUNTS, chunk=CHUNKS, seed=SEEDS)
def test_an_action_within_the_budget_is_carried_out(
    synthetic_adapter: Any, budget_options: Any, counts: Any, chunk: int, seed: int
) -> None:
    _, _, decisions = setting(counts, chunk, seed, synthetic_adapter, budget_options, "flops", 0.6)
    order = uniform(decisions.count, seed + 1).argsort()
    fits = decisions.cost[order].cumsum(0) <= float(decisions.budget.pool_limit)
    action = torch.zeros(decisions.count)
    action[order[fits]] = 1
    mask = decisions.mask(action, uniform(decisions.count, seed + 2))
    assert bool((decisions.share(mask)[action.bool()] == 1).all())


def test_equal_or_absent_importance_is_no_error(synthetic_adapter: Any, budget_options: Any) -> None:
    adapter = synthetic_adapter([(2, 5)])
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(budget_options("rate", 0.5), adapter, space)
    for importance in (torch.zeros(space.n), torch.ones(space.n)):
        decisions = make_decisions(importance, space, budget, 2)
        assert decisions.importance.isfinite().all()
        assert decisions.block_importance.isfinite().all()
