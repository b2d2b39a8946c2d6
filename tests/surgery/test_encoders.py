"""Masked, shrunk, saved and reloaded encoders compute the same, with both heads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    PreTrainedModel,
    RobertaConfig,
)

from policyprune.models.adapter import adapt
from policyprune.pruning.compensation import Compensation
from policyprune.pruning.masking import Masking
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import space_of
from policyprune.surgery.checkpoint import auto_class, save_checkpoint
from policyprune.surgery.shrink import shrink

STOCK = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "vocab_size": 300,
}
CONFIGS = {
    "bert": BertConfig(**STOCK),
    "roberta": RobertaConfig(**STOCK),
    "electra": ElectraConfig(**STOCK, embedding_size=16),
    "distilbert": DistilBertConfig(dim=32, n_heads=4, hidden_dim=24, n_layers=3, vocab_size=300),
}
HEADS = [AutoModelForSequenceClassification, AutoModelForQuestionAnswering]
KILLED = {
    "nothing": [],
    "first attention": [(0, "attention")],
    "last attention": [(2, "attention")],
    "middle ffn": [(1, "ffn")],
    "a whole layer": [(1, "attention"), (1, "ffn")],
}


def make(family: str, head: Any) -> PreTrainedModel:
    model = head.from_config(CONFIGS[family]).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def outputs(model: PreTrainedModel) -> Tensor:
    ids = torch.arange(5, 25).view(2, 10)
    attention = torch.ones_like(ids)
    attention[0, 7:] = 0
    out = model(input_ids=ids, attention_mask=attention)
    return torch.cat([out[name].flatten() for name in out])


@pytest.mark.parametrize("killed", KILLED.values(), ids=KILLED)
@pytest.mark.parametrize("head", HEADS, ids=["classification", "answers"])
@pytest.mark.parametrize("family", CONFIGS)
def test_masked_is_shrunk_is_reloaded(
    family: str, head: Any, killed: list[tuple[int, str]], tmp_path: Path, tiny_tokenizer: Any
) -> None:
    model = make(family, head)
    adapter = adapt(model)
    space = space_of(adapter, ["attention", "ffn"])
    mask = torch.rand(space.n) < 0.6
    for key in killed:
        space.views(mask)[key].zero_()
    masking = Masking(adapter, space)
    dense = outputs(model)
    with masking.on(model):
        masking.set(mask.float()[None])
        masked = outputs(model)
    smaller = shrink(PrunableModel(model, adapter, space), mask)
    save_checkpoint(smaller, tiny_tokenizer, adapter, tmp_path / "checkpoint")
    load: Callable[..., PreTrainedModel] = getattr(transformers, auto_class(smaller)).from_pretrained
    reloaded = load(tmp_path / "checkpoint", trust_remote_code=True)
    tolerance = 1e-4 * float(masked.abs().max())
    assert float((dense - masked).abs().max()) > 10 * tolerance
    torch.testing.assert_close(outputs(smaller), masked, atol=tolerance, rtol=0)
    torch.testing.assert_close(outputs(reloaded), masked, atol=tolerance, rtol=0)
    assert sum(block.count for block in adapt(smaller).blocks) == int(mask.sum())


def test_scales_folded_into_the_weights_equal_scales_as_multipliers() -> None:
    model = make("bert", AutoModelForSequenceClassification)
    adapter = adapt(model)
    space = space_of(adapter, ["attention", "ffn"])
    mask = torch.rand(space.n) < 0.6
    scales = mask * (0.5 + torch.rand(space.n))
    masking = Masking(adapter, space)
    with masking.on(model):
        masking.set(scales[None])
        multiplied = outputs(model)
    folded = outputs(shrink(PrunableModel(model, adapter, space), mask, Compensation(scales)))
    torch.testing.assert_close(folded, multiplied, atol=1e-4 * float(multiplied.abs().max()), rtol=0)
