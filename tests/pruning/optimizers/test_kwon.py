"""Fisher search and rearrangement against trying everything."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from policyprune.pruning.budget.budget import Budget, make_budget
from policyprune.pruning.optimizers.kwon import Kwon, best_split, rearrange
from policyprune.pruning.optimizers.problem import Problem
from policyprune.pruning.space import Group, Space, space_of

COUNTS = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 12)), min_size=1, max_size=3)
SEEDS = st.integers(0, 1000)


def scores(n: int, seed: int) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients_of(rows: int, n: int, seed: int) -> Tensor:
    """Correlated units, so that interactions matter."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(rows, 2, generator=generator) @ torch.randn(2, n, generator=generator)
    return common + torch.randn(rows, n, generator=generator)


def setting(counts: Any, name: str, keep: float, adapter_of: Callable[..., Any], options: Callable[..., Any]) -> Any:
    adapter = adapter_of(counts)
    space = space_of(adapter, ["attention", "ffn"])
    return space, make_budget(options(name, keep), adapter, space)


def kept_by_kind(mask: Tensor, space: Space) -> dict[str, int]:
    counts = dict.fromkeys({group.kind for group in space.groups}, 0)
    for (_, kind), view in space.views(mask).items():
        counts[kind] += int(view.sum())
    return counts


def best_by_trying(fisher: Tensor, space: Space, budget: Budget) -> float:
    """The most information over all numbers of heads and channels that the budget allows."""
    kind = torch.tensor([group.kind == "ffn" for group in space.groups])[space.group_of]
    heads, channels = (fisher[own].sort(descending=True).values for own in (~kind, kind))
    price = [float(budget.cost[own][0]) for own in (~kind, kind)]
    found = [
        float(heads[:h].sum() + channels[:c].sum())
        for h, c in product(range(len(heads) + 1), range(len(channels) + 1))
        if h * price[0] + c * price[1] <= float(budget.pool_limit[0]) + 1e-6
    ]
    return max(found)


@pytest.mark.parametrize("name", ["flops", "params"])
@given(counts=COUNTS, keep=st.floats(0.3, 1), seed=SEEDS)
def test_the_split_is_the_best_of_all(
    synthetic_adapter: Any, budget_options: Any, name: str, counts: Any, keep: float, seed: int
) -> None:
    space, budget = setting(counts, name, max(keep, 0.75), synthetic_adapter, budget_options)
    fisher = scores(space.n, seed)
    mask = best_split(fisher, space, budget)
    assert mask.dtype == torch.bool
    assert float(budget.spent(mask)) <= float(budget.pool_limit) + 1e-6
    assert float(fisher[mask].sum()) == pytest.approx(best_by_trying(fisher, space, budget), abs=1e-9)


@given(counts=COUNTS, keep=st.floats(0.05, 1), seed=SEEDS)
def test_flops_alone_allow_any_share(
    synthetic_adapter: Any, budget_options: Any, counts: Any, keep: float, seed: int
) -> None:
    space, budget = setting(counts, "flops", keep, synthetic_adapter, budget_options)
    fisher = scores(space.n, seed)
    mask = best_split(fisher, space, budget)
    assert float(budget.spent(mask)) <= float(budget.pool_limit) + 1e-6
    assert float(fisher[mask].sum()) == pytest.approx(best_by_trying(fisher, space, budget), abs=1e-9)


@given(counts=COUNTS, keep=st.floats(0, 1, exclude_min=True), seed=SEEDS)
def test_a_rate_takes_the_best_of_each_kind(
    synthetic_adapter: Any, budget_options: Any, counts: Any, keep: float, seed: int
) -> None:
    space, budget = setting(counts, "rate", keep, synthetic_adapter, budget_options)
    fisher = scores(space.n, seed)
    mask = best_split(fisher, space, budget)
    totals = {"attention": sum(a for a, _ in counts), "ffn": sum(c for _, c in counts)}
    assert kept_by_kind(mask, space) == {kind: round(keep * total) for kind, total in totals.items()}
    kind = torch.tensor([group.kind == "ffn" for group in space.groups])[space.group_of]
    for own in (kind, ~kind):
        kept, pruned = fisher[own & mask], fisher[own & ~mask]
        assert not len(kept) or not len(pruned) or float(kept.min()) >= float(pruned.max())


@given(counts=COUNTS, seed=SEEDS)
def test_a_budget_for_each_layer_is_kept(synthetic_adapter: Any, budget_options: Any, counts: Any, seed: int) -> None:
    adapter = synthetic_adapter(counts)
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(budget_options("flops", 0.5, scope="per_layer"), adapter, space)
    mask = best_split(scores(space.n, seed), space, budget)
    assert float(budget.spent(mask)) <= float(budget.pool_limit) + 1e-6
    spent = torch.zeros(len(space.groups), dtype=torch.float64).index_add(0, budget.segment, budget.cost * mask)
    most = torch.zeros(len(space.groups), dtype=torch.float64).scatter_reduce(0, budget.segment, budget.cost, "amax")
    assert bool((spent <= budget.limit + most + 1e-6).all())


def fisher_loss(gradients: Tensor, mask: Tensor, space: Space) -> float:
    """(1 - m)^T F (1 - m), with the Fisher matrix of each block."""
    total = 0.0
    for key, own in space.views(mask).items():
        g = space.views(gradients)[key].double()
        matrix = g.T @ g / len(g)
        out = (~own).double()
        total += float(out @ matrix @ out)
    return total


@given(counts=COUNTS, seed=SEEDS, keep=st.floats(0.1, 0.9))
def test_rearranging_keeps_the_counts_and_never_loses_more(counts: Any, seed: int, keep: float) -> None:
    space = Space(
        tuple(Group(i, k, c) for i, pair in enumerate(counts) for k, c in zip(("attention", "ffn"), pair, strict=True))
    )
    gradients, mask = gradients_of(20, space.n, seed), scores(space.n, seed + 1) < keep
    before = mask.clone()
    result = rearrange(gradients, mask, space)
    assert torch.equal(mask, before)
    assert result.dtype == torch.bool
    for key, own in space.views(result).items():
        assert int(own.sum()) == int(space.views(mask)[key].sum())
    assert fisher_loss(gradients, result, space) <= fisher_loss(gradients, mask, space) * (1 + 1e-9)


@given(count=st.integers(2, 9), seed=SEEDS, keep=st.integers(1, 8))
def test_no_swap_is_left_that_would_help(count: int, seed: int, keep: int) -> None:
    space = Space((Group(0, "ffn", count),))
    gradients = gradients_of(15, count, seed)
    mask = torch.arange(count) < min(keep, count - 1)
    result = rearrange(gradients, mask, space)
    now = fisher_loss(gradients, result, space)
    for new, old in product((~result).nonzero().flatten().tolist(), result.nonzero().flatten().tolist()):
        other = result.clone()
        other[new], other[old] = True, False
        assert fisher_loss(gradients, other, space) >= now - 1e-6 * abs(now)


@given(count=st.integers(2, 8), seed=SEEDS, alone=st.booleans())
def test_where_one_swap_reaches_everything_it_is_the_best_mask(count: int, seed: int, alone: bool) -> None:
    """One unit kept, or one pruned: greedy swaps cannot get stuck."""
    space = Space((Group(0, "attention", count),))
    gradients = gradients_of(15, count, seed)
    keep = 1 if alone else count - 1
    start = torch.arange(count) < keep
    masks = [
        torch.zeros(count, dtype=torch.bool).index_fill(0, torch.tensor(own), True)
        for own in combinations(range(count), keep)
    ]
    best = min(fisher_loss(gradients, mask, space) for mask in masks)
    assert fisher_loss(gradients, rearrange(gradients, start, space), space) == pytest.approx(best, rel=1e-6, abs=1e-9)


def test_interactions_change_what_is_kept() -> None:
    """Two units that cancel each other can go together, though each alone matters most."""
    gradients = torch.tensor([[2.0, -2.0, 1.0, 1.0], [2.0, -2.0, 1.0, -1.0], [2.0, -2.0, -1.0, 1.0]])
    space = Space((Group(0, "ffn", 4),))
    by_size = torch.tensor([True, True, False, False])
    diagonal = gradients.square().mean(0)
    assert float(diagonal[by_size].min()) > float(diagonal[~by_size].max())
    gradients[:, 2:] += 1.5
    assert fisher_loss(gradients, ~by_size, space) == pytest.approx(0)
    result = rearrange(gradients, torch.tensor([True, False, True, False]), space)
    assert result.tolist() == [False, False, True, True]


@pytest.mark.parametrize("rearranged", [False, True])
def test_the_search_is_the_split_and_then_the_swaps(
    synthetic_adapter: Any, budget_options: Any, rearranged: bool
) -> None:
    space, budget = setting([(3, 8), (3, 8)], "flops", 0.6, synthetic_adapter, budget_options)
    gradients = gradients_of(12, space.n, 4)

    def evaluate(masks: Tensor, rows: Tensor) -> Tensor:
        raise AssertionError("the model is not needed")

    lengths, ones = torch.ones(12, dtype=torch.long), torch.ones(space.n)
    problem = Problem(evaluate, space, budget, ones, ones, lengths, seed=0, gradients=lambda: gradients)
    found = Kwon(rearrange=rearranged).search(problem, lambda row: None)
    split = best_split(gradients.square().mean(0), space, budget)
    expected = rearrange(gradients, split, space) if rearranged else split
    assert torch.equal(found.mask, expected)
    assert torch.equal(found.probabilities, expected.float())
    assert found.forwards == 0
    assert float(budget.spent(found.mask)) <= float(budget.pool_limit)
    again = Kwon(rearrange=rearranged).search(replace(problem, seed=9), lambda row: None)
    assert torch.equal(again.mask, found.mask)
