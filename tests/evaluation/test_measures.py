"""Sizes and speed of models as they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from policyprune.evaluation.measures import (
    block_macs,
    block_parameters,
    checkpoint_megabytes,
    parameters,
    size,
    weight_megabytes,
)
from policyprune.models.adapter import adapt
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import space_of
from policyprune.surgery.checkpoint import save_checkpoint
from policyprune.surgery.shrink import shrink

MakeLlama = Callable[..., Any]


def half(model: Any) -> Any:
    """The model without every second unit."""
    adapter = adapt(model)
    space = space_of(adapter, ("attention", "ffn"))
    return shrink(PrunableModel(model, adapter, space), torch.arange(space.n) % 2 == 0)


def test_tied_weights_count_once(tiny_llama: MakeLlama) -> None:
    tied, untied = tiny_llama(tie_word_embeddings=True), tiny_llama(tie_word_embeddings=False)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert parameters(untied) - parameters(tied) == 300 * 64
    assert weight_megabytes(untied) - weight_megabytes(tied) == pytest.approx(300 * 64 * 4 / 1e6)


def test_parameters_by_hand(tiny_llama: MakeLlama) -> None:
    model = tiny_llama(tie_word_embeddings=False)
    attention = 64 * (8 * 16) * 2 + 64 * (4 * 16) * 2
    layer = attention + 3 * 64 * 48 + 2 * 64
    assert block_parameters(model, adapt(model)) == 3 * layer
    assert parameters(model) == 3 * layer + 2 * 300 * 64 + 64


@pytest.mark.parametrize("length", [1, 20])
@pytest.mark.parametrize("pruned", [False, True])
def test_macs_are_those_of_the_forward_pass(tiny_llama: MakeLlama, length: int, pruned: bool) -> None:
    model = half(tiny_llama()) if pruned else tiny_llama()
    counted = 0

    def count(module: nn.Linear, inputs: Any, output: torch.Tensor) -> None:
        nonlocal counted
        counted += output.numel() * module.in_features

    linears = [module for module in model.model.layers.modules() if isinstance(module, nn.Linear)]
    for module in linears:
        module.register_forward_hook(count)
    model(input_ids=torch.zeros(1, length, dtype=torch.long))
    heads = sum(layer.self_attn.q_proj.out_features for layer in model.model.layers)
    assert block_macs(adapt(model), length) == counted + 2 * length * length * heads


def test_the_smaller_model_is_smaller_by_every_measure(tiny_llama: MakeLlama) -> None:
    dense = tiny_llama()
    before, after = ({row[0]: row[1] for row in size(model, 32)} for model in (dense, half(dense)))
    assert set(before) == {"parameters", "block_parameters", "block_macs"}
    assert all(after[name] < before[name] for name in before)
    assert before["parameters"] - after["parameters"] == before["block_parameters"] - after["block_parameters"]


def test_checkpoint_size_is_that_of_its_weight_files(
    tiny_llama: MakeLlama, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model = tiny_llama(tie_word_embeddings=False)
    save_checkpoint(model, tiny_tokenizer, adapt(model), tmp_path / "checkpoint", max_shard_size="50KB")
    files = list((tmp_path / "checkpoint").glob("*.safetensors"))
    assert len(files) > 1
    assert checkpoint_megabytes(tmp_path / "checkpoint") == sum(file.stat().st_size for file in files) / 1e6
    assert checkpoint_megabytes(tmp_path / "checkpoint") == pytest.approx(weight_megabytes(model), rel=0.1)
