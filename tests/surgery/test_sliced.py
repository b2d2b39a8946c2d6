"""Sliced forwards against masked ones, in every family; and that the weights come back whole."""

import functools
import weakref
from typing import Any

import pytest
import torch

from policyprune.models.examples import EXAMPLES, example
from policyprune.models.layerwise import columns_of, projection
from policyprune.pruning.compensation import Compensation
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import space_of
from policyprune.surgery.equivalence import TOLERANCE, Probe, gap, masks, outputs, probe_of, random_mask
from policyprune.surgery.shrink import shrink
from policyprune.surgery.sliced import Sliced


@functools.cache
def subject(name: str) -> Probe:
    return probe_of(example(name))


@pytest.mark.parametrize("name", EXAMPLES)
def test_sliced_is_masked_to_rounding_and_the_dense_model_stays(name: str) -> None:
    own = subject(name)
    before, weights = outputs(own.model, own.ids), {k: v.data_ptr() for k, v in own.model.named_parameters()}
    sliced = Sliced(own)
    shared = {parameter.data_ptr() for parameter in sliced.model.parameters()}
    for mask in masks(own).values():
        sliced.set(mask)
        found = outputs(sliced.model, own.ids)
        assert gap(found, own.masked_outputs(mask)) <= TOLERANCE
        assert gap(found, before) > TOLERANCE
    sliced.set(torch.ones(own.space.n))
    assert torch.equal(outputs(sliced.model, own.ids), before)
    assert {parameter.data_ptr() for parameter in sliced.model.parameters()} == shared <= set(weights.values())
    assert {k: v.data_ptr() for k, v in own.model.named_parameters()} == weights


@pytest.mark.parametrize("name", EXAMPLES)
def test_with_more_channels_than_are_kept_it_computes_the_same(name: str) -> None:
    """Also with new weights of output projections, which know nothing of the others."""
    own, multiple = subject(name), 8
    sliced, widths = Sliced(own, multiple), set[int]()
    for block in own.adapter.blocks:
        if block.kind == "ffn":
            out = sliced.model.get_submodule(block.out)
            out.register_forward_hook(lambda module, args, out: widths.add(args[0].shape[-1] % multiple))
    mask = random_mask(own.space)
    weights = {
        key: projection(own.model, own.blocks[key])[0][:, columns_of(own.blocks[key], view.nonzero().flatten())] * 0.5
        for key, view in own.views(mask).items()
        if view.any()
    }
    for given in ({}, weights):
        sliced.set(mask, given)
        smaller = shrink(own, mask, Compensation(weights=given))
        assert gap(outputs(sliced.model, own.ids), outputs(smaller, own.ids)) <= TOLERANCE
    assert widths == {0}


def test_a_forward_that_fails_leaves_nothing_cut(tiny_llama: Any) -> None:
    model = tiny_llama()
    own = probe_of(model)
    sliced = Sliced(PrunableModel(model, own.adapter, own.space))

    def fail(module: Any, args: Any) -> None:
        raise MemoryError

    handle = sliced.model.get_submodule(own.adapter.blocks[3].out).register_forward_pre_hook(fail)
    sliced.set(random_mask(own.space))
    with pytest.raises(MemoryError):
        outputs(sliced.model, own.ids)
    handle.remove()
    sliced.set(torch.ones(own.space.n))
    assert torch.equal(outputs(sliced.model, own.ids), outputs(model, own.ids))


def test_one_layer_at_a_time_has_weights_of_its_own(tiny_llama: Any) -> None:
    model = tiny_llama(num_hidden_layers=6)
    own = probe_of(model)
    dense = {parameter.data_ptr() for parameter in model.parameters()}
    sliced = Sliced(PrunableModel(model, own.adapter, own.space))
    held: list[int] = []

    def count(module: Any, args: Any, out: Any) -> None:
        held.append(sum(p.data_ptr() not in dense for p in sliced.model.parameters()))

    for block in own.adapter.blocks:
        sliced.model.get_submodule(block.out).register_forward_hook(count)
    sliced.set(torch.arange(own.space.n) % 2 == 0)
    outputs(sliced.model, own.ids)
    assert held == [7] * len(own.adapter.blocks)


def test_nothing_is_left_of_a_layer_that_has_run(tiny_llama: Any) -> None:
    model = tiny_llama()
    own = probe_of(model)
    cut = list[weakref.ref[torch.nn.Parameter]]()
    sliced = Sliced(PrunableModel(model, own.adapter, own.space))
    for block in own.adapter.blocks:
        linear = sliced.model.get_submodule(block.out)
        linear.register_forward_hook(lambda module, args, out: cut.append(weakref.ref(module.weight)))
    for first in range(2):
        sliced.set(torch.arange(own.space.n) % 2 == first)
        outputs(sliced.model, own.ids)
    assert len(cut) == 2 * len(own.adapter.blocks)
    assert [weight() for weight in cut] == [None] * len(cut)


def test_channels_alone_are_sliced_and_attention_stays(tiny_llama: Any) -> None:
    model = tiny_llama()
    adapter = probe_of(model).adapter
    own = Probe(model, adapter, space_of(adapter, ("ffn",)), probe_of(model).ids)
    sliced = Sliced(PrunableModel(model, adapter, own.space))
    mask = random_mask(own.space)
    sliced.set(mask)
    assert gap(outputs(sliced.model, own.ids), own.masked_outputs(mask)) <= TOLERANCE


@pytest.mark.parametrize("name", EXAMPLES)
def test_layers_that_stay_as_they_were_give_what_they_gave(name: str) -> None:
    """Masks one after the other on two batches, against forwards that compute everything."""
    probe = probe_of(example(name))
    sliced, batches = Sliced(probe), [torch.randint(5, 90, (3, 12)), torch.randint(5, 90, (3, 12))]
    masks = [torch.ones(probe.space.n)]
    for layer in range(len(probe.adapter.layers)):  # of one layer at a time, then of all
        only = random_mask(probe.space, seed=layer).float()
        for key, view in probe.space.views(only).items():
            if key[0] != layer:
                view.fill_(1)
        masks.append(only)
    masks += [random_mask(probe.space).float(), masks[0], masks[-1]]
    for batch, mask in [(0, mask) for mask in masks] + [(1, masks[-1]), (0, masks[-1]), (0, masks[-1])]:
        sliced.set_for(b"%d" % batch, mask)
        assert gap(outputs(sliced.model, batches[batch]), outputs(shrink(probe, mask), batches[batch])) < 1e-4


def test_only_layers_behind_a_change_are_computed(tiny_llama: Any) -> None:
    probe = probe_of(tiny_llama(num_hidden_layers=4))
    sliced, ids, computed = Sliced(probe), torch.randint(5, 90, (2, 10)), list[int]()
    for index, path in enumerate(probe.adapter.layers):
        mlp: Any = sliced.model.get_submodule(path).mlp
        mlp.act_fn.register_forward_hook(lambda *args, index=index: computed.append(index))

    def layers(mask: torch.Tensor, inputs: bytes = b"a") -> list[int]:
        computed.clear()
        sliced.set_for(inputs, mask)
        outputs(sliced.model, ids)
        return list(computed)

    whole, third = torch.ones(probe.space.n), torch.ones(probe.space.n)
    probe.space.views(third)[2, "ffn"][:3] = 0
    assert layers(whole) == [0, 1, 2, 3]
    assert layers(third) == [2, 3]
    assert layers(third) == []
    assert layers(third, b"b") == [0, 1, 2, 3]
    sliced.set(third)
    outputs(sliced.model, ids)
    assert layers(third, b"b") == [0, 1, 2, 3]
