"""The llama table: which modules units own, and what a unit costs (methods, section 2)."""

from typing import Any

import pytest
from transformers import CTRLConfig, CTRLLMHeadModel

from policyprune.errors import UsageError
from policyprune.models.adapter import Adapter, Block, adapt

HIDDEN, HEAD, GROUPS, QUERIES, CHANNELS, LAYERS = 64, 16, 4, 2, 48, 3


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
