"""Whole blocks and layers: masked, shrunk, saved and reloaded models compute the same and cost what was promised."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers import AutoModelForSequenceClassification as Classifier

from encoders import make_encoder
from policyprune.config.schema import Budget as BudgetConfig
from policyprune.models.adapter import adapt
from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.budget.selection import select
from policyprune.pruning.masking import Masking
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import space_of
from policyprune.surgery.checkpoint import save_checkpoint
from policyprune.surgery.shrink import shrink

UNITS = {
    "head": ["attention"],
    "channel": ["ffn"],
    "head_channel": ["attention", "ffn"],
    "sublayer": ["attention_block", "ffn_block"],
    "layer": ["layer"],
    "all": ["attention", "ffn", "attention_block", "ffn_block", "layer"],
}
IDS = torch.randint(3, 250, (2, 9), generator=torch.Generator().manual_seed(1))


def counted(model: Any) -> int:
    """Parameters of the layers, without the adapter."""
    return sum(p.numel() for name, p in model.named_parameters() if ".layers." in name or ".layer." in name)


@pytest.fixture(params=["llama", "llama with biases", "bert"])
def model(request: pytest.FixtureRequest, tiny_llama: Any, tiny_tokenizer: Any) -> Any:
    sizes = {"num_hidden_layers": 4, "vocab_size": len(tiny_tokenizer)}
    if request.param == "bert":
        return make_encoder(**sizes)
    biases = "biases" in request.param
    return tiny_llama(attention_bias=biases, mlp_bias=biases, **sizes)


@pytest.mark.parametrize("granularity", UNITS)
@torch.no_grad()
def test_masked_is_shrunk_is_reloaded_within_the_budget(
    model: Any, granularity: str, tiny_tokenizer: Any, tmp_path: Path, assert_same: Any
) -> None:
    adapter = adapt(model)
    space = space_of(adapter, UNITS[granularity])
    budget = make_budget(BudgetConfig(name="params", keep=0.75, sequence_length=9), adapter, space)
    scores = torch.rand(space.n, generator=torch.Generator().manual_seed(3))
    if granularity == "all":
        scores[space.group_of // 5 == 1] = 0  # all of layer 1
    mask = space.expand(select(scores, budget))
    with Masking(adapter, space.units).on(model) as masking:
        masking.set(mask.float()[None])
        masked = model(IDS).logits
    smaller = shrink(PrunableModel(model, adapter, space), mask)
    assert_same(smaller(IDS).logits, masked)
    left = counted(smaller)
    assert left <= 0.75 * counted(model)
    if granularity in ("head_channel", "channel", "all"):
        cheapest = min(block.params_per_unit for block in adapter.blocks)
        assert 0.75 * counted(model) - left < cheapest + adapter.fixed_params / 4
    save_checkpoint(smaller, tiny_tokenizer, adapter, tmp_path / "pruned")
    load = AutoModelForCausalLM if model.config.model_type == "llama" else Classifier
    again = load.from_pretrained(tmp_path / "pruned", trust_remote_code=True).eval()
    assert_same(again(IDS).logits, masked)
    if model.config.model_type == "llama":
        common: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
        for one in (smaller, again):
            assert torch.equal(
                one.generate(IDS, use_cache=True, **common), one.generate(IDS, use_cache=False, **common)
            )


def without_layers(model: Any, *dropped: int) -> Any:
    adapter = adapt(model)
    space = space_of(adapter, ["layer"])
    mask = torch.tensor([layer not in dropped for layer in range(len(adapter.layers))])
    return shrink(PrunableModel(model, adapter, space), space.expand(mask)), adapter


@pytest.mark.parametrize("dropped", [(0,), (1, 2), (3,)])
def test_fewer_layers_need_no_code_of_ours(
    tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path, dropped: tuple[int, ...]
) -> None:
    model = tiny_llama(num_hidden_layers=4, vocab_size=len(tiny_tokenizer))
    smaller, adapter = without_layers(model, *dropped)
    save_checkpoint(smaller, tiny_tokenizer, adapter, tmp_path / "pruned")
    assert not list((tmp_path / "pruned").glob("*.py"))
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned").eval()
    assert type(stock) is LlamaForCausalLM
    assert stock.config.num_hidden_layers == len(stock.model.layers) == 4 - len(dropped)
    assert [layer.self_attn.layer_idx for layer in smaller.model.layers] == list(range(4 - len(dropped)))
    torch.testing.assert_close(stock(IDS).logits, smaller(IDS).logits)
    assert len(model.model.layers) == model.config.num_hidden_layers == 4


def test_a_model_without_anything_left_keeps_an_empty_layer(tiny_llama: Any) -> None:
    smaller, _ = without_layers(tiny_llama(), 0, 1, 2)
    model = tiny_llama()
    expected = model.lm_head(model.model.norm(model.model.embed_tokens(IDS)))
    torch.testing.assert_close(smaller(IDS).logits, expected)
    assert len(smaller.model.layers) == 1
    assert smaller.generate(IDS, max_new_tokens=3, min_new_tokens=3).shape == (2, 12)


def test_layers_of_an_encoder_keep_their_norms() -> None:
    model = make_encoder()
    smaller, _ = without_layers(model, 1)
    assert len(smaller.base_model.encoder.layer) == 3
    assert smaller.base_model.encoder.layer[1].attention.output.LayerNorm.weight.shape == (32,)


def test_per_layer_lists_follow_the_layers(tiny_llama: Any) -> None:
    model = tiny_llama()
    model.config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    smaller, _ = without_layers(model, 0)
    assert smaller.config.layer_types == ["sliding_attention", "full_attention"]
    assert model.config.layer_types == ["full_attention", "sliding_attention", "full_attention"]


def test_a_bias_goes_with_its_block_where_layers_can_go(tiny_llama: Any) -> None:
    model = tiny_llama(attention_bias=True, mlp_bias=True)
    adapter = adapt(model)
    space = space_of(adapter, ["attention_block", "ffn_block"])
    mask = torch.ones(space.n, dtype=torch.bool)
    mask[2] = False  # the attention of layer 1
    smaller = shrink(PrunableModel(model, adapter, space), space.expand(mask))
    model.model.layers[1].self_attn.register_forward_hook(lambda module, args, out: (out[0] * 0, out[1]))
    torch.testing.assert_close(smaller(IDS).logits, model(IDS).logits)
