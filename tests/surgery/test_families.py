"""Every family: what its units are, what they cost, and that removing them is exact."""

import copy
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from policyprune.commands import doctor
from policyprune.models.examples import EXAMPLES, example, random_model
from policyprune.models.families import FAMILIES
from policyprune.surgery import equivalence
from policyprune.surgery.checkpoint import save_checkpoint
from policyprune.surgery.equivalence import Probe, probe_of, random_mask
from policyprune.surgery.shrink import shrink

DECODERS = [name for name in EXAMPLES if FAMILIES[name.partition(",")[0]].head == "CausalLM"]
WHOLE = {"olmo2", "bloom", "falcon, ALiBi", "falcon, multi-query"}  # attention of a layer is one unit
WIDE = {"gpt2", "bloom", "falcon", "falcon, multi-query", "falcon, ALiBi"}  # channels: four times the hidden size
HEADS_ARE_STATED = {
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
PAGE = Path(__file__).parents[2] / "docs" / "families.md"


@functools.cache
def subject(name: str) -> Probe:
    return probe_of(example(name))


@pytest.fixture(scope="module")
def worst() -> dict[str, dict[str, float]]:
    """The largest deviations by family and check; one fresh process loads the checkpoints of all families."""
    return doctor.checked({name: subject(name) for name in EXAMPLES})


def macs(model: Any, ids: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids)
    return counter.get_total_flops() // 2


def params(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_at_least_sixteen_model_types_are_checked() -> None:
    assert {name.partition(",")[0] for name in EXAMPLES} == set(FAMILIES)
    assert len(FAMILIES) >= 16


@pytest.mark.parametrize("name", EXAMPLES)
def test_units_are_those_of_the_config(name: str) -> None:
    config, adapter = subject(name).model.config, subject(name).adapter
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", 4)
    assert len(adapter.blocks) == 2 * config.num_hidden_layers
    for block in adapter.blocks:
        if block.kind == "attention":
            assert block.count == (1 if name in WHOLE else heads)
            assert block.count * block.width == config.num_attention_heads * adapter.head_dim
        else:
            assert (block.count, block.width) == (128 if name in WIDE else 24, 1)


@pytest.mark.parametrize("name", EXAMPLES)
def test_parts_of_a_module_cover_it_without_gap_or_overlap(name: str) -> None:
    for block in subject(name).adapter.blocks:
        covered: dict[tuple[str, str], list[int]] = {}
        for part in block.parts:
            own = range(part.offset, part.offset + block.count * part.width)
            covered.setdefault((part.module, part.axis), []).extend(own)
        for (module, axis), indices in covered.items():
            bias = subject(name).model.get_submodule(module).bias
            assert sorted(indices) == list(range(len(indices)))
            assert axis == "in" or bias is None or len(bias) == len(indices)


@pytest.mark.parametrize("name", EXAMPLES)
def test_costs_are_those_of_the_shrunk_model(name: str) -> None:
    config = copy.deepcopy(subject(name).model.config)
    config._attn_implementation = "eager"  # whose products are all counted
    own = probe_of(random_model(config, subject(name).adapter.family.head))
    mask = random_mask(own.space, seed=3, without=[(1, "ffn")])
    smaller = shrink(own, mask)
    views = own.space.views(~mask)
    gone = [(block, int(views[block.layer, block.kind].sum())) for block in own.adapter.blocks]
    assert params(own.model) - params(smaller) == sum(block.params_per_unit * count for block, count in gone)
    ids = own.ids[:1]
    expected = sum(block.macs(ids.shape[1]) * count for block, count in gone)
    assert macs(own.model, ids) - macs(smaller, ids) == expected


@pytest.mark.parametrize("name", EXAMPLES)
def test_pruned_is_masked_everywhere(name: str, worst: dict[str, dict[str, float]]) -> None:
    """In memory, reloaded without policyprune, pruned twice, with the cache (float32), and in bfloat16."""
    lacks = set() if name in DECODERS else {"cache"}
    lacks |= set() if name in HEADS_ARE_STATED else {"query heads"}
    assert set(worst[name]) == set(doctor.COLUMNS) - lacks
    for column, value in worst[name].items():
        assert value <= (5e-2 if column == "bfloat16" else 1e-4), column


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_check_would_notice_a_single_wrong_unit(name: str) -> None:
    own = subject(name)
    mask = random_mask(own.space)
    wrong = mask.clone()
    view = own.space.views(wrong)[1, "ffn"]
    view[view.nonzero()[0]] = False
    assert equivalence.gap(equivalence.outputs(shrink(own, wrong), own.ids), own.masked_outputs(mask)) > 1e-3
    half = equivalence.in_bfloat16(own)
    empty = random_mask(own.space, without=[(1, "attention")])
    gap = equivalence.gap(half.masked_outputs(empty), half.masked_outputs(torch.ones(own.space.n)))
    assert gap > equivalence.TOLERANCE_BFLOAT16


@pytest.mark.parametrize("name", EXAMPLES)
def test_equal_widths_give_the_stock_class_where_its_config_can_say_it(name: str, tmp_path: Path) -> None:
    own = subject(name)
    kinds = ("attention", "ffn") if name in HEADS_ARE_STATED else ("ffn",)
    smaller = shrink(own, equivalence.equal_widths(own.space, kinds))
    save_checkpoint(smaller, None, own.adapter, tmp_path / "checkpoint")
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    files = list((tmp_path / "checkpoint").glob("*.py"))
    assert bool(files) == ("auto_map" in config) == ("per_layer_config" in config) == (name == "bloom")


@pytest.mark.parametrize("name", DECODERS)
def test_generation_with_the_cache_equals_generation_without(name: str) -> None:
    own = subject(name)
    smaller = shrink(own, random_mask(own.space, without=[(0, "attention"), (0, "ffn"), (2, "attention")]))
    common: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    attention = torch.ones_like(own.ids)
    with_cache = smaller.generate(own.ids, attention_mask=attention, use_cache=True, **common)
    assert with_cache.shape == (2, 15)
    assert torch.equal(with_cache, smaller.generate(own.ids, attention_mask=attention, use_cache=False, **common))


def test_the_page_of_families_is_what_the_doctor_prints(worst: dict[str, dict[str, float]]) -> None:
    assert doctor.table({name: subject(name) for name in EXAMPLES}, worst) in PAGE.read_text(encoding="utf-8")
