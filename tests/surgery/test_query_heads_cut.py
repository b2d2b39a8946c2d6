"""Query heads cut out of every family that can lose them: what is masked, shrunk, pruned again and written agrees."""

import functools
import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from policyprune.errors import UsageError
from policyprune.models.adapter import adapt
from policyprune.models.examples import EXAMPLES, SIZES, random_model
from policyprune.pruning.prunable import PrunableModel
from policyprune.surgery.checkpoint import save_checkpoint
from policyprune.surgery.equivalence import TOLERANCE, Probe, gap, outputs, probe_of
from policyprune.surgery.gguf import write_gguf
from policyprune.surgery.onnx import write_onnx
from policyprune.surgery.plan import Plan, base_of
from policyprune.surgery.plan_file import read_plan, write_plan
from policyprune.surgery.shrink import shrink
from policyprune.surgery.sliced import Sliced

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "granite", "phi3"]
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 24, "num_hidden_layers": 3}
KINDS = ("query_head", "ffn")


@functools.cache
def probe(name: str) -> Probe:
    """Two key/value heads with three query heads each."""
    return probe_of(random_model(AutoConfig.for_model(name, **{**SIZES, **EXAMPLES[name], **HEADS}), "CausalLM"), KINDS)


def chosen(own: PrunableModel, groups: list[int], heads: list[int], seed: int) -> torch.Tensor:
    """Of each layer so many key/value heads with so many query heads each, any of them, and half the channels."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(own.units.n, generator=generator) < 0.5
    for (layer, kind), view in own.units.views(mask).items():
        if kind == "attention":
            of_group = view.view(own.blocks[layer, kind].groups, -1)
            of_group.fill_(False)
            for group in torch.randperm(len(of_group), generator=generator)[: groups[layer]]:
                of_group[group, torch.randperm(of_group.shape[1], generator=generator)[: heads[layer]]] = True
    return mask


counts = st.lists(st.integers(0, 3), min_size=3, max_size=3)


@given(name=st.sampled_from(FAMILIES), groups=counts, heads=counts, again=counts, seed=st.integers(0, 1000))
def test_masked_is_shrunk_is_sliced_is_pruned_again(
    name: str, groups: list[int], heads: list[int], again: list[int], seed: int
) -> None:
    own = probe(name)
    mask = chosen(own, groups, heads, seed)
    masked = own.masked_outputs(mask)
    smaller = shrink(own, mask)
    assert gap(outputs(smaller, own.ids), masked) <= TOLERANCE
    sliced = Sliced(own)
    sliced.set(mask)
    assert gap(outputs(sliced.model, own.ids), masked) <= TOLERANCE
    left = [block for block in adapt(smaller).blocks if block.kind == "attention"]
    if any(block.queries > 1 for block in left):  # else none can go without its group
        second = PrunableModel.of(smaller, KINDS)
        more = chosen(second, [3] * len(left), again, seed + 1)
        both = mask.clone()
        both[mask] = more
        assert gap(outputs(shrink(second, more), own.ids), own.masked_outputs(both)) <= TOLERANCE
    by_groups = PrunableModel.of(smaller)  # whole ones, after the query heads
    if by_groups.units.n:
        fewer = torch.rand(by_groups.units.n, generator=torch.Generator().manual_seed(seed)) < 0.6
        views = by_groups.units.views(fewer).items()
        heads_left = torch.cat([view.repeat_interleave(by_groups.blocks[key].queries) for key, view in views])
        both = mask.clone()
        both[mask] = heads_left
        assert gap(outputs(shrink(by_groups, fewer), own.ids), own.masked_outputs(both)) <= TOLERANCE


@pytest.mark.parametrize("heads", [[2, 1, 3], [1, 1, 1], [2, 2, 2]])
@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_a_checkpoint_loads_with_the_classes_that_we_write(name: str, heads: list[int], tmp_path: Path) -> None:
    own = probe(name)
    mask = chosen(own, [2, 2, 2], heads, seed=3)
    own.units.views(mask)[0, "ffn"][:] = own.units.views(mask)[1, "ffn"]
    own.units.views(mask)[2, "ffn"][:] = own.units.views(mask)[1, "ffn"]
    save_checkpoint(shrink(own, mask), None, own.adapter, tmp_path / "it")
    config = json.loads((tmp_path / "it" / "config.json").read_text())
    alike = len(set(heads)) == 1
    assert ("auto_map" in config) != alike
    if alike:
        assert (config["num_attention_heads"], config["num_key_value_heads"]) == (2 * heads[0], 2)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "it", trust_remote_code=True)
    assert gap(outputs(again, own.ids), own.masked_outputs(mask)) <= TOLERANCE


def test_a_group_that_keeps_more_than_another_is_refused() -> None:
    own = probe("llama")
    mask = torch.ones(own.units.n, dtype=torch.bool)
    own.units.views(mask)[1, "attention"][0] = False
    with pytest.raises(UsageError, match=r"mask: the attention of layer 1 keeps 2 query heads .* and 3 of another"):
        shrink(own, mask)


def test_a_plan_of_query_heads_is_laid_on_the_dense_model(tmp_path: Path) -> None:
    own = probe("llama")
    mask = chosen(own, [2, 1, 2], [1, 3, 2], seed=7)
    write_plan(tmp_path / "plan.json", Plan(base_of(own.model, "m", None, "text"), own.units, mask, None))
    again = read_plan(tmp_path / "plan.json").apply(own.model)
    assert gap(outputs(again, own.ids), own.masked_outputs(mask)) <= TOLERANCE


@pytest.fixture
def pruned(tiny_llama: Any, tiny_tokenizer: Any) -> Any:
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32, "hidden_size": 96}
    model = tiny_llama(vocab_size=len(tiny_tokenizer), **heads)
    own = PrunableModel.of(model, KINDS)
    return shrink(own, chosen(own, [2, 1, 2], [2, 3, 1], seed=1))


def test_gguf_states_the_heads_of_each_layer(pruned: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    write_gguf(pruned, tiny_tokenizer, tmp_path / "m.gguf", "f32")
    fields = gguf.GGUFReader(str(tmp_path / "m.gguf")).fields
    assert fields["deci.attention.head_count"].contents() == [4, 3, 2]
    assert fields["deci.attention.head_count_kv"].contents() == [2, 1, 2]


def test_onnx_computes_the_same(pruned: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    write_onnx(pruned, tiny_tokenizer, tmp_path / "onnx")  # compares, with the cache, before it writes
    assert (tmp_path / "onnx" / "model.onnx").is_file()
