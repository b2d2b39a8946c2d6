"""Query heads as units: what they are, what they cost, and which models cannot lose them."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from policyprune.config.schema import Budget
from policyprune.errors import UsageError
from policyprune.models.examples import EXAMPLES, example
from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.prunable import PrunableModel
from policyprune.surgery.shrink import shrink

SPLIT = {
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "smollm3",
    "granite",
    "phi3",
}
REFUSED = {
    "olmo2": "queries and keys are normalised over all heads; use granularity=sublayer or channel",
    "falcon": "one projection holds them between keys and values; use granularity=head",
    "falcon, multi-query": "one projection holds them between keys and values; use granularity=head",
    "falcon, ALiBi": "use granularity=sublayer or channel",
    "bloom": "use granularity=sublayer or channel",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_other_models_refuse_query_heads_in_one_line(name: str) -> None:
    model = example(name)
    if name in SPLIT:
        assert PrunableModel.of(model, ["query_head"]).has_query_heads
        return
    reason = REFUSED.get(name, "each has a key and a value of its own; use granularity=head")
    with pytest.raises(UsageError, match=re.escape(reason)) as refused:
        PrunableModel.of(model, ["query_head"])
    assert "\n" not in str(refused.value)


def left(model: Any, ids: torch.Tensor) -> Iterator[int]:
    """Parameters, and multiply-accumulates of the projections and the attention."""
    yield sum(parameter.numel() for parameter in model.parameters())
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids)
    yield counter.get_total_flops() // 2


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3"])
@pytest.mark.parametrize("kind", ["params", "flops"])
def test_a_budget_counts_what_the_smaller_model_saves(name: str, kind: str) -> None:
    """Query heads of all groups cost alike; keys and values are saved when the last of them goes."""
    model = example(name)
    model.config._attn_implementation = "eager"  # whose products are all counted
    prunable = PrunableModel.of(model, ["query_head", "ffn"])
    ids = torch.randint(3, 300, (1, 10))
    budget = make_budget(Budget(name=kind, keep=0.99, sequence_length=10), prunable.adapter, prunable.space)
    dense = torch.ones(prunable.space.n, dtype=torch.bool)
    for gone in ([0], [1], [0, 1]):
        mask = dense.clone()
        prunable.space.views(mask)[1, "attention"][gone] = False
        saved = float(budget.spent(dense) - budget.spent(mask))
        index = 0 if kind == "params" else 1
        smaller = shrink(prunable, prunable.space.expand(mask))
        assert saved == list(left(model, ids))[index] - list(left(smaller, ids))[index]


def test_keys_values_and_cache_stay_with_the_last_query_head() -> None:
    prunable = PrunableModel.of(example("llama"), ["query_head"])
    mask = prunable.space.expand(torch.tensor([True, False] * 3))
    smaller = shrink(prunable, mask)
    attention = smaller.model.layers[1].self_attn
    dense = prunable.model.model.layers[1].self_attn
    assert attention.k_proj.weight is dense.k_proj.weight
    assert attention.v_proj.weight is dense.v_proj.weight
    assert attention.q_proj.weight.shape[0] == dense.q_proj.weight.shape[0] // 2
    cached = smaller(torch.arange(3, 9)[None], use_cache=True).past_key_values
    assert cached.layers[1].keys.shape[1] == 4
