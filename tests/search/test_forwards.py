"""Losses of masks through the model: sliced or masked, one by one or several at once."""

from typing import Any

import pytest
import torch
import torch.utils.flop_counter
from torch import Tensor

from policyprune.models.adapter import adapt
from policyprune.models.sequences import token_losses
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import Space, space_of
from policyprune.search.forwards import Forwards

IDS = torch.randint(3, 300, (6, 9), generator=torch.Generator().manual_seed(1))
ROWS = torch.tensor([4, 0, 3])


def loss(model: Any, rows: Tensor) -> Tensor:
    return token_losses(model, IDS[rows]).mean(-1)


def made(model: Any, granularity: tuple[str, ...], sliced: bool) -> tuple[Forwards, Space]:
    adapter = adapt(model)
    space = space_of(adapter, granularity)
    return Forwards(PrunableModel(model, adapter, space), loss, sliced), space


@pytest.mark.parametrize(
    "units", [("attention", "ffn"), ("layer",), ("attention", "attention_block", "ffn", "ffn_block", "layer")]
)
@torch.no_grad()
def test_a_mask_costs_the_same_sliced_masked_and_among_others(tiny_llama: Any, units: tuple[str, ...]) -> None:
    model = tiny_llama(attention_bias=True)
    plain, space = made(model, units, sliced=False)
    masks = (torch.rand(3, space.n, generator=torch.Generator().manual_seed(2)) < 0.7).float()
    per_sequence = (torch.rand(3, space.n, generator=torch.Generator().manual_seed(3)) < 0.7).float()
    jobs = [(masks[:1], ROWS), (per_sequence, ROWS), (masks[1:2], ROWS), (masks[2:], ROWS[:1])]
    with plain.on():
        expected = plain.each(jobs)
    fast, _ = made(model, units, sliced=True)
    with fast.on():
        found = fast.each(jobs)
        assert [len(own) for own in found] == [3, 3, 3, 1]
        torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=1e-4, atol=1e-4)
        assert all(torch.equal(fast(*job), own) for job, own in zip(jobs, found, strict=True))
    dense = loss(model, ROWS)
    assert not torch.allclose(found[1], dense, rtol=1e-3)


def test_offloaded_weights_are_not_sliced(tiny_llama: Any) -> None:
    model = tiny_llama()
    assert made(model, ("ffn",), sliced=True)[0]._sliced is not None
    model.model.layers[1].to("meta")
    assert made(model, ("ffn",), sliced=True)[0]._sliced is None


def test_what_is_pruned_is_not_computed(tiny_llama: Any) -> None:
    model = tiny_llama()
    fast, space = made(model, ("attention", "ffn"), sliced=True)
    mask = torch.zeros(1, space.n)
    mask[:, ::2] = 1
    with fast.on(), torch.no_grad(), torch.utils.flop_counter.FlopCounterMode(display=False) as half:
        fast(mask, ROWS)
    with fast.on(), torch.no_grad(), torch.utils.flop_counter.FlopCounterMode(display=False) as whole:
        fast(torch.ones(1, space.n), ROWS)
    head = 2 * 3 * 8 * 64 * 300
    assert (half.get_total_flops() - head) / (whole.get_total_flops() - head) == pytest.approx(0.5, abs=0.01)
