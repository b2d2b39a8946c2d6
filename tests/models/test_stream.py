"""What an error of a block's output counts for, against what it changes behind the layer."""

from typing import Any

import pytest
import torch
from torch import Tensor

from policyprune.models import stream
from policyprune.models.adapter import Block
from policyprune.models.examples import example
from policyprune.models.layerwise import projection, walk, watch
from policyprune.models.stream import Passed, added, gain_of, per_residual, token_weight, watched
from policyprune.pruning.second_order.statistics import dense_least_squares
from policyprune.surgery.equivalence import Probe, probe_of

OWN_NORMS = ["gemma2", "gemma3_text", "olmo2"]


def seen(probe: Probe, block: Block, batch: dict[str, Tensor]) -> Passed:
    """What passes a block of the dense model, and its layer."""
    path = probe.adapter.layers[block.layer]
    for layer in walk(probe.model, probe.adapter, [batch]):
        if layer.index == block.layer:
            return next(iter(watch(probe.model, layer, [path, *watched(block)], final=True)))
    raise AssertionError


@pytest.mark.parametrize("name", [*OWN_NORMS, "granite", "llama"])
def test_an_error_counts_by_what_it_changes_behind_the_layer(name: str) -> None:
    """To first order, relative to the residual; a norm of the block's own takes out the part along the output."""
    probe, batch = probe_of(example(name)), {"input_ids": torch.randint(5, 300, (6, 20))}
    block = probe.adapter.blocks[3]
    path = probe.adapter.layers[block.layer]
    dense = seen(probe, block, batch)
    weight = projection(probe.model, block)[0]
    squares = next(own for of, own in dense_least_squares(probe, [batch], False) if of.out == block.out)
    change = 1e-4 * torch.randn_like(weight)
    new = (weight + change).double() * gain_of(probe.model, block)[:, None]
    weight += change
    other = seen(probe, block, batch)
    brute = (other[path][1] - dense[path][1]) / dense[path][1].square().mean(-1, keepdim=True).sqrt()
    (out, moved), counts = (dense[block.out][1], other[block.out][1] - dense[block.out][1]), 1.0
    if block.out_norm:
        counts = 1 - float(((out * moved).sum(-1).square() / out.square().sum(-1)).sum() / moved.square().sum())
        assert counts < 1
    found = squares.error(new) * counts
    assert found == pytest.approx(float(brute.double().square().sum()), rel=0.1 if block.out_norm else 0.01)


@pytest.mark.parametrize("name", [*OWN_NORMS, "granite"])
def test_what_a_block_adds_is_told_from_what_its_layer_makes(name: str) -> None:
    probe, batch = probe_of(example(name)), {"input_ids": torch.randint(5, 300, (6, 20))}
    attention, ffn = probe.adapter.blocks[:2]
    path = probe.adapter.layers[0]
    one, other = (seen(probe, block, batch) for block in (attention, ffn))
    taken, given = one[path]
    torch.testing.assert_close(taken + added(one, attention) + added(other, ffn), given, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*OWN_NORMS, "granite"])
def test_the_residual_changes_by_what_an_output_is_made_to_change_by(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "DAMPING", 0.0)
    probe, batch = probe_of(example(name)), {"input_ids": torch.randint(5, 300, (6, 20))}
    block = probe.adapter.blocks[1]
    passed = seen(probe, block, batch)
    out = passed[block.out][1]
    wanted = 1e-3 * torch.randn_like(out)
    moved = out + per_residual(passed, block, gain_of(probe.model, block)) * wanted
    after: Any = dict(passed)
    after[block.out] = (passed[block.out][0], moved)
    if block.out_norm:
        after[block.out_norm] = (moved, probe.model.get_submodule(block.out_norm)(moved))
    found = added(after, block) - added(passed, block)
    assert float((found - wanted).norm() / wanted.norm()) < (0.35 if block.out_norm else 0.01)


def test_channels_that_a_norm_hardly_lets_through_are_damped() -> None:
    probe, batch = probe_of(example("gemma2")), {"input_ids": torch.randint(5, 300, (6, 20))}
    block = probe.adapter.blocks[1]
    gain = torch.ones(32)
    gain[3] = 1e-6
    passed = seen(probe, block, batch)
    needed = per_residual(passed, block, gain) * token_rms(passed[block.out][1])
    assert float(needed[:, 3].abs().max()) < 1e-3 * float(needed[:, 4].abs().min())


def test_tokens_in_front_of_a_post_norm_count_alike() -> None:
    probe, batch = probe_of(example("bert")), {"input_ids": torch.randint(5, 300, (6, 20))}
    block = probe.adapter.blocks[1]
    assert bool((token_weight(seen(probe, block, batch), block, probe.adapter.layers[0]) == 1).all())


def token_rms(states: Tensor) -> Tensor:
    return states.square().mean(-1, keepdim=True).rsqrt()
