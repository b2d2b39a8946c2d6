"""Hidden channels of every family: what they cost, where they go, and that removing them is exact."""

import copy
import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from policyprune.errors import UsageError
from policyprune.evaluation.fresh_process import reloaded_gaps
from policyprune.evaluation.measures import block_parameters
from policyprune.models.adapter import adapt
from policyprune.models.examples import EXAMPLES, example, random_model
from policyprune.models.families import FAMILIES
from policyprune.models.residual import KEPT_HIDDEN_SIZE
from policyprune.pruning.masking import Masking
from policyprune.pruning.space import space_of
from policyprune.surgery import equivalence
from policyprune.surgery.checkpoint import save_checkpoint
from policyprune.surgery.equivalence import Probe, hidden_mask, probe_of, random_mask
from policyprune.surgery.shrink import shrink

DECODERS = [name for name in EXAMPLES if FAMILIES[name.partition(",")[0]].head == "CausalLM"]
STOCK = {"llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", "olmo2", "phi3"}


@functools.cache
def subject(name: str) -> Probe:
    return probe_of(example(name), ("hidden",))


def mask_of(own: Probe) -> torch.Tensor:
    return hidden_mask(own.space.n, 8)


@pytest.mark.parametrize("name", EXAMPLES)
def test_costs_are_those_of_the_shrunk_model(name: str) -> None:
    config = copy.deepcopy(subject(name).model.config)
    config._attn_implementation = "eager"  # whose products are all counted
    own = probe_of(random_model(config, subject(name).adapter.family.head), ("hidden",))
    mask = mask_of(own)
    smaller, hidden, ids = shrink(own, mask), own.adapter.hidden, own.ids[:1]
    assert hidden is not None
    gone = hidden.count - int(mask.sum())
    after = adapt(smaller)
    assert block_parameters(own.model, own.adapter) - block_parameters(smaller, after) == gone * hidden.params

    def macs(model: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids)
        inside = [sum(counter.flop_counts[name].values()) for name in counter.flop_counts if name in wanted]
        return sum(inside) // 2

    wanted = {f"{type(own.model).__name__}.{path}" for path in own.adapter.layers}
    assert macs(own.model) - macs(smaller) == ids.shape[1] * gone * hidden.macs_per_token


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_mask_per_sequence_is_each_sequence_with_its_own(name: str) -> None:
    own = subject(name)
    masks = torch.stack([random_mask(own.space, seed) for seed in (1, 2)]).float()
    with Masking(own.adapter, own.space).on(own.model) as masking:
        masking.set(masks)
        together = equivalence.outputs(own.model, own.ids)
        masking.set(None)
        dense = equivalence.outputs(own.model, own.ids)
    torch.testing.assert_close(dense, equivalence.outputs(own.model, own.ids), rtol=0, atol=0)
    for row in (0, 1):
        alone = equivalence.outputs(shrink(own, masks[row].bool()), own.ids[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_check_would_notice_a_single_wrong_channel(name: str) -> None:
    own = subject(name)
    mask = mask_of(own)
    wrong = mask.clone()
    wrong[mask.nonzero()[0]], wrong[(~mask).nonzero()[0]] = False, True
    assert equivalence.gap(equivalence.outputs(shrink(own, wrong), own.ids), own.masked_outputs(mask)) > 1e-2


@pytest.mark.parametrize("name", EXAMPLES)
def test_nothing_but_what_has_a_feature_per_channel_changes(name: str) -> None:
    own = subject(name)
    before = {name: tensor.clone() for name, tensor in own.model.state_dict().items()}
    smaller = shrink(own, mask_of(own))
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.model.state_dict().items())
    assert adapt(smaller).hidden == replace(own.adapter.hidden, count=int(mask_of(own).sum()))  # type: ignore[type-var]
    tied = own.model.get_output_embeddings() is not None and (
        own.model.get_output_embeddings().weight is own.model.get_input_embeddings().weight
    )
    if own.model.get_output_embeddings() is not None:
        assert (smaller.get_output_embeddings().weight is smaller.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("name", DECODERS)
def test_generation_with_the_cache_equals_generation_without(name: str) -> None:
    own = subject(name)
    smaller = shrink(own, hidden_mask(own.space.n, 1))
    common: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    attention = torch.ones_like(own.ids)
    with_cache = smaller.generate(own.ids, attention_mask=attention, use_cache=True, **common)
    assert with_cache.shape == (2, 15)
    assert torch.equal(with_cache, smaller.generate(own.ids, attention_mask=attention, use_cache=False, **common))


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_config_says_the_hidden_size_where_the_stock_class_takes_it(name: str, tmp_path: Path) -> None:
    own = subject(name)
    save_checkpoint(shrink(own, mask_of(own)), None, own.adapter, tmp_path / "checkpoint")
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    files = list((tmp_path / "checkpoint").glob("*.py"))
    assert bool(files) == ("auto_map" in config) == (KEPT_HIDDEN_SIZE in config) == (name not in STOCK)
    kept = int(mask_of(own).sum())
    assert config.get(KEPT_HIDDEN_SIZE, config.get("hidden_size")) == kept


def test_models_that_lost_blocks_lose_hidden_channels_too() -> None:
    """What is left of an empty block is a bias, of as many features as there are channels."""
    subjects = {}
    for name in ("llama", "gpt2", "opt", "falcon, ALiBi", "bert"):
        blocks = probe_of(example(name))
        first = shrink(blocks, random_mask(blocks.space, without=[(0, "attention"), (1, "ffn")]))
        own = subjects[name] = probe_of(first, ("hidden",))
        mask = mask_of(own)
        assert equivalence.gap(equivalence.outputs(shrink(own, mask), own.ids), own.masked_outputs(mask)) < 1e-4
    assert max(reloaded_gaps(subjects).values()) < 1e-4


def test_the_gradient_of_the_mask_is_that_of_the_definition(tiny_llama: Any) -> None:
    """With channels partly there, the norm divides by the sum of the mask."""
    model = tiny_llama(num_hidden_layers=1)
    adapter = adapt(model)
    space = space_of(adapter, ["hidden"])
    ids = torch.arange(9)[None]

    def loss(mask: torch.Tensor) -> torch.Tensor:
        masking.set(mask[None])
        return model(ids).logits.double().square().mean()

    with Masking(adapter, space).on(model) as masking:
        ones = torch.ones(space.n, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(ones), ones)
        step = torch.zeros(space.n).index_fill(0, torch.tensor([3]), 1e-2)
        with torch.no_grad():
            difference = (loss(1 + step) - loss(1 - step)) / 2e-2
    assert gradient[3] == pytest.approx(float(difference), rel=1e-2)


def test_what_cannot_lose_channels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = random_model(type(example("opt").config)(**{**SIZES_OF_OPT, "_remove_final_layer_norm": True}), "CausalLM")
    with pytest.raises(UsageError, match=r"granularity: hidden channels cannot be removed.*no norm stands between"):
        space_of(adapt(bare), ["hidden"])
    assert equivalence.with_hidden_units(probe_of(bare)) is None
    monkeypatch.setitem(FAMILIES, "gpt2", replace(FAMILIES["gpt2"], residual=None))
    with pytest.raises(UsageError, match=r"granularity: hidden .*docs/add-a-model\.md"):
        space_of(adapt(example("gpt2")), ["hidden"])


SIZES_OF_OPT: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "word_embed_proj_dim": 16,
    "ffn_dim": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
}
