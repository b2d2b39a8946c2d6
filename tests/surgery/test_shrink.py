"""The shrunk model computes what the masked model computes, and leaves the dense one alone."""

from typing import Any

import pytest
import torch

from policyprune.models.adapter import adapt
from policyprune.pruning.masking import Masking
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import space_of
from policyprune.surgery.shrink import shrink


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_shrunk_equals_masked(subject: Any, make_mask: Any, assert_same: Any, attention: str) -> None:
    subject.model.set_attn_implementation(attention)
    mask = make_mask(subject.space)
    smaller = shrink(subject, mask)
    assert_same(smaller(subject.ids).logits, subject.masked_logits(mask))


@pytest.mark.parametrize("units", [("attention",), ("ffn",)])
def test_one_kind_of_unit_alone(plain_subject: Any, assert_same: Any, units: tuple[str, ...]) -> None:
    model, adapter = plain_subject.model, plain_subject.adapter
    space = space_of(adapter, units)
    mask = torch.rand(space.n) < 0.5
    smaller = shrink(PrunableModel(model, adapter, space), mask)
    with Masking(adapter, space).on(model) as masking:
        masking.set(mask.float()[None])
        assert_same(smaller(plain_subject.ids).logits, model(plain_subject.ids).logits)
    untouched = {"attention", "ffn"} - set(units)
    counts = {block.kind: block.count for block in adapter.blocks}
    assert {b.count for b in adapt(smaller).blocks if b.kind in untouched} == {counts[kind] for kind in untouched}


def test_a_mask_changes_the_logits(subject: Any, masks: Any) -> None:
    dense = subject.model(subject.ids).logits
    for name, make in masks.items():
        difference = (subject.masked_logits(make(subject.space)) - dense).abs().max() / dense.abs().max()
        assert (difference == 0) == (name == "nothing pruned")
        assert name == "nothing pruned" or difference > 0.05


def test_each_single_unit_matters(plain_subject: Any) -> None:
    dense = plain_subject.model(plain_subject.ids).logits
    for unit in range(plain_subject.space.n):
        mask = torch.ones(plain_subject.space.n)
        mask[unit] = 0
        assert (plain_subject.masked_logits(mask) - dense).abs().max() > 1e-3 * dense.abs().max()


def test_out_of_place_leaves_the_dense_model_alone(subject: Any, make_mask: Any) -> None:
    before = subject.model(subject.ids).logits
    config = subject.model.config.to_dict()
    smaller = shrink(subject, make_mask(subject.space))
    assert smaller is not subject.model
    assert torch.equal(subject.model(subject.ids).logits, before)
    assert subject.model.config.to_dict() == config


def test_weights_that_are_not_sliced_are_shared(plain_subject: Any, masks: Any) -> None:
    mask = masks["FFN of the middle layer"](plain_subject.space)
    views = plain_subject.space.views(mask)
    views[2, "attention"].fill_(True)
    smaller = shrink(plain_subject, mask)
    dense = {name: tensor.data_ptr() for name, tensor in plain_subject.model.named_parameters()}
    cut = [block for block in plain_subject.adapter.blocks if not views[block.layer, block.kind].all()]
    sliced = {f"{part.module}.weight" for block in cut for part in block.parts}
    for name, tensor in smaller.named_parameters():
        assert (tensor.data_ptr() == dense[name]) == (name not in sliced)
    removed = set(dense) - set(dict(smaller.named_parameters()))
    assert removed == {f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}


def test_in_place_changes_the_model_itself(plain_subject: Any, masks: Any, assert_same: Any) -> None:
    mask = masks["random 1"](plain_subject.space)
    expected = plain_subject.masked_logits(mask)
    smaller = shrink(plain_subject, mask, in_place=True)
    assert smaller is plain_subject.model
    assert_same(plain_subject.model(plain_subject.ids).logits, expected)


@pytest.mark.parametrize("name", ["random 1", "FFN of the middle layer", "first layer"])
def test_shrinking_in_two_steps_is_shrinking_at_once(subject: Any, masks: Any, assert_same: Any, name: str) -> None:
    first, second = masks[name](subject.space), torch.rand(subject.space.n) < 0.7
    half = shrink(subject, first)
    adapter = adapt(half)
    smaller = shrink(PrunableModel(half, adapter, space_of(adapter, ["attention", "ffn"])), second[first])
    assert_same(smaller(subject.ids).logits, subject.masked_logits(first & second))


@pytest.mark.parametrize("name", ["random 1", "FFN of the middle layer", "first layer"])
def test_a_shrunk_model_can_be_masked(subject: Any, masks: Any, assert_same: Any, name: str) -> None:
    first, second = masks[name](subject.space), torch.rand(subject.space.n) < 0.7
    half = shrink(subject, first)
    adapter = adapt(half)
    with Masking(adapter, space_of(adapter, ["attention", "ffn"])).on(half) as masking:
        masking.set(second[first].float()[None])
        assert_same(half(subject.ids).logits, subject.masked_logits(first & second))


@pytest.mark.parametrize("name", ["random 1", "attention of the middle layer", "first layer", "all attention"])
def test_generation_with_the_cache_equals_generation_without(plain_subject: Any, masks: Any, name: str) -> None:
    mask = masks[name](plain_subject.space)
    smaller = shrink(plain_subject, mask)
    common: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    with_cache = smaller.generate(plain_subject.ids, use_cache=True, **common)
    without_cache = smaller.generate(plain_subject.ids, use_cache=False, **common)
    assert with_cache.shape == (3, 18)
    assert torch.equal(with_cache, without_cache)


@pytest.mark.parametrize("name", ["random 1", "first layer", "last layer"])
def test_logits_with_the_cache_equal_logits_without(
    plain_subject: Any, masks: Any, assert_same: Any, name: str
) -> None:
    mask, ids = masks[name](plain_subject.space), plain_subject.ids
    smaller = shrink(plain_subject, mask)
    start = smaller(ids[:, :6], use_cache=True)
    rest = smaller(ids[:, 6:], past_key_values=start.past_key_values, use_cache=True)
    assert_same(torch.cat([start.logits, rest.logits], dim=1), smaller(ids).logits)


@pytest.mark.parametrize("name", ["random 1", "first layer"])
def test_a_padded_sequence_equals_the_same_one_alone(
    plain_subject: Any, masks: Any, assert_same: Any, name: str
) -> None:
    mask, ids = masks[name](plain_subject.space), plain_subject.ids[:1]
    smaller = shrink(plain_subject, mask)
    padded = torch.cat([torch.full((1, 4), 2), ids], dim=1)
    attention = torch.cat([torch.zeros(1, 4), torch.ones_like(ids)], dim=1).long()
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    logits = smaller(padded, attention_mask=attention, position_ids=positions).logits[:, 4:]
    assert_same(logits, smaller(ids).logits)


def test_one_step_of_training(plain_subject: Any, masks: Any) -> None:
    mask = masks["attention of the middle layer"](plain_subject.space)
    smaller = shrink(plain_subject, mask).requires_grad_(True)
    smaller(plain_subject.ids, labels=plain_subject.ids).loss.backward()
    without_gradient = {name for name, parameter in smaller.named_parameters() if parameter.grad is None}
    assert without_gradient == {"model.layers.1.input_layernorm.weight"}  # nothing reads it any more
