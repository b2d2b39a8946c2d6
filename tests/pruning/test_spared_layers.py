"""Layers at both ends that stay whole, and the others that meet the budget for them."""

import re
from typing import Any

import pytest
import torch

from harness import validated
from policyprune.errors import UsageError
from policyprune.models.adapter import adapt
from policyprune.pruning.budget.block_latency import BlockLatency
from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.budget.selection import one_shot_mask, select
from policyprune.pruning.masking import Masking
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import space_of
from policyprune.surgery.shrink import shrink

COUNTS = [(4, 20)] * 8
SPARED = (0.25, 0.125)  # two of eight layers, and one
KINDS = ("attention", "ffn")
DENSE = {"attention": 4, "ffn": 48}  # units of a layer of tiny_llama


@pytest.mark.parametrize(
    ("layers", "first", "last"), [(32, 4, 2), (30, 4, 2), (12, 2, 1), (40, 5, 3), (8, 1, 1), (3, 0, 0), (1, 0, 0)]
)
def test_shares_are_rounded_to_whole_layers(synthetic_adapter: Any, layers: int, first: int, last: int) -> None:
    space = space_of(synthetic_adapter([(2, 3)] * layers), ["attention", "ffn"], (0.125, 0.0625))
    assert sorted({group.layer for group in space.groups}) == list(range(first, layers - last))


def test_at_least_one_layer_is_left(synthetic_adapter: Any) -> None:
    with pytest.raises(UsageError, match=r"granularity\.spared: \[0\.5, 0\.4\] leaves none of 1 layers to prune"):
        space_of(synthetic_adapter([(2, 3)]), ["ffn"], (0.5, 0.4))


@pytest.mark.parametrize("units", [["attention", "ffn"], ["layer"], ["attention_block", "ffn"]])
@pytest.mark.parametrize("name", ["rate", "params", "flops"])
def test_the_others_meet_the_budget_for_all(
    synthetic_adapter: Any, budget_options: Any, name: str, units: list[str]
) -> None:
    """What a mask of all layers may cost is what the spared ones cost and what the mask of the others may."""
    adapter = synthetic_adapter(COUNTS)
    every = make_budget(budget_options(name, 0.75), adapter, space_of(adapter, units))
    inner = space_of(adapter, units, SPARED)
    assert {group.layer for group in inner.groups} == {2, 3, 4, 5, 6}
    budget = make_budget(budget_options(name, 0.75), adapter, inner)
    spared = every.spent(torch.ones(every.cost.shape)) - budget.spent(torch.ones(inner.n))
    assert torch.allclose(budget.pool_limit + spared, every.pool_limit)


def test_each_of_the_others_loses_the_same_share(
    synthetic_adapter: Any, budget_options: Any, random_scores: Any
) -> None:
    adapter = synthetic_adapter(COUNTS)
    space = space_of(adapter, ["attention", "ffn"], SPARED)
    budget = make_budget(budget_options("rate", 0.6875, scope="per_layer"), adapter, space)
    kept = {key: int(view.sum()) for key, view in space.views(select(random_scores(space.n, 0), budget)).items()}
    # 0.6875 of 32 heads and of 160 channels are 22 and 110; without the 12 and 60 spared, 10 of 20 and 50 of 100
    assert kept == {(layer, kind): {"attention": 2, "ffn": 10}[kind] for layer in range(2, 7) for kind in KINDS}


@pytest.mark.parametrize("name", ["rate", "params", "flops"])
def test_a_budget_that_only_the_spared_could_meet_names_the_smallest(
    synthetic_adapter: Any, budget_options: Any, name: str
) -> None:
    adapter = synthetic_adapter(COUNTS)
    space = space_of(adapter, ["attention", "ffn"], SPARED)
    with pytest.raises(UsageError, match=r"^budget\.keep: 0\.3 of the \w+ cannot be met") as raised:
        make_budget(budget_options(name, 0.3), adapter, space)
    stated = re.search(r"at least (\d\.\d+) can be met$", str(raised.value))
    assert stated is not None
    assert bool((make_budget(budget_options(name, float(stated[1])), adapter, space).pool_limit >= 0).all())


def test_latency_of_spared_layers_is_paid(synthetic_adapter: Any) -> None:
    """A layer of the table takes 0.1 + 0.4 + 0.5 of a dense one."""
    config = validated("budget=latency", "budget.keep=0.6").budget
    adapter = synthetic_adapter(COUNTS)
    latency = BlockLatency(0.1, {"attention": 0.2, "ffn": 0.1}, {"attention": 0.05, "ffn": 0.02})
    budget = make_budget(config, adapter, space_of(adapter, ["attention", "ffn"], SPARED), latency)
    assert budget.pool_limit.item() == pytest.approx(0.6 * 8 - 3)
    assert budget.spent(torch.ones(budget.cost.shape)).item() == pytest.approx(5)


def test_the_smaller_model_computes_what_the_masked_one_does(tiny_llama: Any, budget_options: Any) -> None:
    model = tiny_llama(num_hidden_layers=4)
    adapter = adapt(model)
    space = space_of(adapter, ["attention", "ffn"], (0.25, 0.25))
    budget = make_budget(budget_options("rate", 0.75, scope="per_layer"), adapter, space)
    mask = one_shot_mask(torch.rand(space.n), budget, per_cost=True)
    smaller = shrink(PrunableModel(model, adapter, space), mask)
    kept = {(block.layer, block.kind): block.count for block in adapt(smaller).blocks}
    assert kept == {(layer, kind): n // (1 + (layer in (1, 2))) for layer in range(4) for kind, n in DENSE.items()}
    ids = torch.randint(3, 300, (2, 12))
    masking = Masking(adapter, space)
    with masking.on(model), torch.no_grad():
        masking.set(mask.float()[None])
        assert torch.allclose(model(ids).logits, smaller(ids).logits, atol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["granularity.spared=[0.1]"], r"granularity\.spared: \[0\.1\] is not two shares"),
        (["granularity.spared=[0.5,0.5]"], r"granularity\.spared: \[0\.5, 0\.5\] is not two shares"),
        (["granularity.spared=[-1,0]"], r"granularity\.spared: -1\.0 is out of range"),
        (
            ["granularity.spared=[0.1,0]", "budget.scope=uniform"],
            r"granularity\.spared: .* use \[0,0\] or scope=per_la",
        ),
        (["granularity.spared=[0.1,0]", "granularity=hidden"], r"granularity\.spared: .* hidden channels are the same"),
    ],
)
def test_refusals(overrides: list[str], line: str) -> None:
    with pytest.raises(UsageError, match=line):
        validated(*overrides)


@pytest.mark.parametrize(
    ("method", "scope", "spared"),
    [
        ("magnitude", "per_layer", [0, 0]),
        ("wanda_sp", "per_layer", [0, 0]),
        ("llm_pruner", "per_layer", [0.125, 0.0625]),
        ("taylor", "global", [0, 0]),
        ("flap", "global", [0, 0]),
    ],
)
def test_baselines_are_what_their_authors_define(method: str, scope: str, spared: list[float]) -> None:
    config = validated(f"method={method}")
    assert (config.budget.scope, config.granularity.spared) == (scope, spared)
    assert validated(f"method={method}", "budget.scope=uniform", "granularity.spared=[0,0]").budget.scope == "uniform"
