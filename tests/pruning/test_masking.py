"""Masked forwards: who sees which mask, and that the hooks go away again."""

from typing import Any

import pytest
import torch

from policyprune.models.adapter import adapt
from policyprune.pruning.masking import Masking
from policyprune.pruning.space import space_of


def test_one_mask_per_sequence_equals_a_loop_over_sequences(tiny_llama: Any) -> None:
    model = tiny_llama()
    adapter = adapt(model)
    space = space_of(adapter, ["attention", "ffn"])
    ids, masks = torch.randint(3, 300, (4, 9)), (torch.rand(4, space.n) < 0.6).float()
    with Masking(adapter, space).on(model) as masking:
        masking.set(masks)
        together = model(ids).logits
        for row in range(4):
            masking.set(masks[row : row + 1])
            torch.testing.assert_close(together[row], model(ids[row : row + 1]).logits[0], rtol=1e-4, atol=1e-4)


def test_a_zero_removes_the_unit_s_columns(tiny_llama: Any) -> None:
    model, by_hand = tiny_llama(), tiny_llama()
    adapter = adapt(model)
    space = space_of(adapter, ["attention", "ffn"])
    mask = torch.ones(1, space.n)
    views = space.views(mask[0])
    views[1, "attention"][2] = 0
    views[2, "ffn"][7] = 0
    by_hand.model.layers[1].self_attn.o_proj.weight[:, 64:96] = 0  # two query heads of 16 for each key/value head
    by_hand.model.layers[2].mlp.down_proj.weight[:, 7] = 0
    ids = torch.randint(3, 300, (2, 9))
    with Masking(adapter, space).on(model) as masking:
        masking.set(mask)
        torch.testing.assert_close(model(ids).logits, by_hand(ids).logits, rtol=1e-4, atol=1e-4)


def test_without_a_mask_and_after_the_block_the_model_is_dense(tiny_llama: Any) -> None:
    model = tiny_llama()
    adapter = adapt(model)
    space = space_of(adapter, ["ffn"])
    masking, ids = Masking(adapter, space), torch.randint(3, 300, (1, 9))
    dense = model(ids).logits
    with masking.on(model):
        assert torch.equal(model(ids).logits, dense)
        masking.set(torch.zeros(1, space.n))
        assert not torch.equal(model(ids).logits, dense)
        masking.set(None)
        assert torch.equal(model(ids).logits, dense)
        masking.set(torch.zeros(1, space.n))
    assert torch.equal(model(ids).logits, dense)


def test_the_hooks_go_when_a_forward_fails(tiny_llama: Any) -> None:
    model = tiny_llama()
    adapter = adapt(model)
    masking, ids = Masking(adapter, space_of(adapter, ["ffn"])), torch.randint(3, 300, (1, 9))
    dense = model(ids).logits

    def wrong() -> None:
        with masking.on(model):
            masking.set(torch.zeros(5, 3 * 48))  # five masks for two sequences
            model(ids.expand(2, 9))

    with pytest.raises(RuntimeError):
        wrong()
    assert torch.equal(model(ids).logits, dense)
