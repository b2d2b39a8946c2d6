"""The walk through the layers shows each of them what the model would."""

from typing import Any

import torch
from torch import Tensor

from policyprune.models.adapter import adapt
from policyprune.models.layerwise import walk


def batches() -> list[dict[str, Tensor]]:
    """Two batches of different size, the second one with padding on the left."""
    attention = torch.ones(2, 7, dtype=torch.long)
    attention[0, :3] = 0
    return [
        {"input_ids": torch.randint(3, 300, (3, 9))},
        {"input_ids": torch.randint(3, 300, (2, 7)), "attention_mask": attention},
    ]


def hidden_states(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Input of each layer, and the final states after the last norm."""
    states = model.base_model(**batch, output_hidden_states=True, use_cache=False).hidden_states
    assert isinstance(states, tuple)
    return states


def test_without_a_change_each_layer_sees_what_a_plain_forward_gives_it(tiny_llama: Any) -> None:
    model, data = tiny_llama(), batches()
    expected = [hidden_states(model, batch) for batch in data]
    for layer in walk(model, adapt(model), data):
        assert layer.module is model.model.layers[layer.index]
        for hidden, states in zip(layer.hidden, expected, strict=True):
            torch.testing.assert_close(hidden, states[layer.index])
    last = [model.model.norm(out) for out in layer.outputs()]
    torch.testing.assert_close(last, [states[-1] for states in expected])


def test_a_change_in_a_layer_shows_in_the_next_one(tiny_llama: Any) -> None:
    model, data = tiny_llama(), batches()
    before = [hidden_states(model, batch) for batch in data]
    for layer in walk(model, adapt(model), data):
        if layer.index == 1:
            layer.module.mlp.down_proj.weight[:, :20] = 0
            continue
        states = before if layer.index == 0 else [hidden_states(model, batch) for batch in data]
        torch.testing.assert_close(layer.hidden, [batch[layer.index] for batch in states])
    assert not torch.allclose(layer.hidden[0], before[0][2])


def test_no_hook_stays_behind(tiny_llama: Any) -> None:
    model = tiny_llama()
    next(walk(model, adapt(model), batches()))
    assert not any(module._forward_pre_hooks for module in model.modules())
