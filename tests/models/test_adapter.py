"""The llama table: which modules units own, and what a unit costs (methods, section 2).

The costs that budgets are made of are compared with counts on the shrunk model, which know nothing of units.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CTRLConfig, CTRLLMHeadModel

from policyprune.errors import UsageError
from policyprune.models.adapter import Adapter, Block, adapt
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import Space, space_of
from policyprune.surgery.shrink import shrink

HIDDEN, HEAD, GROUPS, QUERIES, CHANNELS, LAYERS = 64, 16, 4, 2, 48, 3
LENGTH = 12


def blocks_of(adapter: Adapter, kind: str) -> list[Block]:
    return [block for block in adapter.blocks if block.kind == kind]


def test_blocks_alternate_attention_and_ffn_layer_by_layer(tiny_llama: Any) -> None:
    adapter = adapt(tiny_llama())
    assert [(block.layer, block.kind) for block in adapter.blocks] == [
        (layer, kind) for layer in range(LAYERS) for kind in ("attention", "ffn")
    ]
    assert adapter.layers == tuple(f"model.layers.{layer}" for layer in range(LAYERS))
    assert adapter.head_dim == HEAD


def test_a_unit_of_attention_is_a_key_value_head_with_its_queries(tiny_llama: Any) -> None:
    for block in blocks_of(adapt(tiny_llama()), "attention"):
        assert (block.count, block.width, block.score_width) == (GROUPS, QUERIES * HEAD, QUERIES * HEAD)
        assert block.out == f"model.layers.{block.layer}.self_attn.o_proj"


def test_a_unit_of_the_ffn_is_a_channel(tiny_llama: Any) -> None:
    for block in blocks_of(adapt(tiny_llama()), "ffn"):
        assert (block.count, block.width, block.score_width) == (CHANNELS, 1, 0)
        assert block.out == f"model.layers.{block.layer}.mlp.down_proj"


@pytest.mark.parametrize(("heads", "groups"), [(8, 8), (8, 4), (8, 1)])
def test_parts_cover_the_weights_without_gap_or_overlap(tiny_llama: Any, heads: int, groups: int) -> None:
    model = tiny_llama(num_attention_heads=heads, num_key_value_heads=groups)
    for block in adapt(model).blocks:
        for part in block.parts:
            weight = model.get_submodule(part.module).weight
            assert part.offset == 0
            assert block.count * part.width == weight.shape[0 if part.axis == "out" else 1]


@pytest.mark.parametrize("length", [1, 7, 128])
def test_multiply_accumulates_follow_the_formula(tiny_llama: Any, length: int) -> None:
    adapter = adapt(tiny_llama())
    per_query_head = 2 * length * HIDDEN * HEAD + 2 * length * length * HEAD
    per_key_value_head = 2 * length * HIDDEN * HEAD
    for block in blocks_of(adapter, "attention"):
        assert block.macs(length) == QUERIES * per_query_head + per_key_value_head
    for block in blocks_of(adapter, "ffn"):
        assert block.macs(length) == 3 * length * HIDDEN


def test_parameters_of_a_unit_are_its_rows_and_columns(tiny_llama: Any) -> None:
    adapter = adapt(tiny_llama())
    assert {b.params_per_unit for b in blocks_of(adapter, "attention")} == {(2 * QUERIES + 2) * HEAD * HIDDEN}
    assert {b.params_per_unit for b in blocks_of(adapter, "ffn")} == {3 * HIDDEN}


def test_parameters_of_a_unit_count_input_biases_but_not_the_output_bias(tiny_llama: Any) -> None:
    adapter = adapt(tiny_llama(attention_bias=True, mlp_bias=True))
    with_biases = (2 * QUERIES + 2) * HEAD * HIDDEN + (QUERIES + 2) * HEAD
    assert {b.params_per_unit for b in blocks_of(adapter, "attention")} == {with_biases}
    assert {b.params_per_unit for b in blocks_of(adapter, "ffn")} == {3 * HIDDEN + 2}
    norms, output_biases = 2 * HIDDEN, 2 * HIDDEN
    assert adapter.fixed_params == LAYERS * (norms + output_biases)


@pytest.mark.parametrize("biases", [False, True])
def test_units_and_the_rest_are_all_parameters_of_the_layers(tiny_llama: Any, biases: bool) -> None:
    model = tiny_llama(attention_bias=biases, mlp_bias=biases)
    adapter = adapt(model)
    in_units = sum(block.count * block.params_per_unit for block in adapter.blocks)
    in_layers = sum(p.numel() for name, p in model.named_parameters() if ".layers." in name)
    assert in_units + adapter.fixed_params == in_layers


def test_an_unknown_family_names_the_page_that_helps() -> None:
    model = CTRLLMHeadModel(CTRLConfig(vocab_size=8, n_embd=8, dff=8, n_layer=1, n_head=1))
    with pytest.raises(UsageError, match=r"'ctrl'.*docs/add-a-model\.md.*llama"):
        adapt(model)


def kept_cost(adapter: Adapter, space: Space, mask: Tensor, what: str) -> int:
    views = space.views(mask)
    price = {b: b.params_per_unit if what == "params" else b.macs(LENGTH) for b in adapter.blocks}
    return sum(price[block] * int(views[block.layer, block.kind].sum()) for block in adapter.blocks)


def counted_macs(model: Any) -> int:
    """Multiply-accumulates that torch sees in a forward of one sequence (it counts 2 FLOPs for each)."""
    ids = torch.randint(3, 300, (1, LENGTH))
    with FlopCounterMode(display=False) as counter:
        model.base_model(input_ids=ids, use_cache=False)
    return counter.get_total_flops() // 2


def counted_params(model: nn.Module) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if ".layers." in name)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("keep", [1.0, 0.7, 0.3])
def test_the_kept_units_cost_what_the_shrunk_model_costs(tiny_llama: Any, biases: bool, keep: float) -> None:
    model = tiny_llama(attention_bias=biases, mlp_bias=biases)
    adapter = adapt(model)
    space = space_of(adapter, ["attention", "ffn"])
    mask = torch.rand(space.n) < keep
    mask[space.group_of == 2] = keep == 1.0  # the attention of layer 1 goes as a whole
    smaller = shrink(PrunableModel(model, adapter, space), mask)
    assert counted_macs(smaller) == kept_cost(adapter, space, mask, "flops")
    assert counted_params(smaller) == kept_cost(adapter, space, mask, "params") + adapter.fixed_params


def test_the_adapter_of_a_shrunk_model_counts_what_is_left(tiny_llama: Any) -> None:
    model = tiny_llama()
    adapter = adapt(model)
    space = space_of(adapter, ["attention", "ffn"])
    mask = torch.rand(space.n) < 0.5
    mask[space.group_of == 0] = False
    smaller = adapt(shrink(PrunableModel(model, adapter, space), mask))
    assert [b.count for b in smaller.blocks] == [int(view.sum()) for view in space.views(mask).values()]
    assert sum(b.count * b.macs(LENGTH) for b in smaller.blocks) == kept_cost(adapter, space, mask, "flops")
    assert smaller.fixed_params == adapter.fixed_params
