"""The one place that slices weights."""

import copy
from itertools import chain

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from policyprune.models.adapter import Adapter, Block
from policyprune.models.unequal import EmptyBlock, dimension, numbers, set_features, set_sizes
from policyprune.pruning.compensation import Compensation
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import HIDDEN, Key
from policyprune.surgery.sizes import keep_layers, kept_layers, state_hidden, state_widths, stated_biases


@torch.no_grad()
def shrink(
    prunable: PrunableModel, mask: Tensor, compensation: Compensation | None = None, in_place: bool = False
) -> PreTrainedModel:
    """Return a model without the units where mask (n,) is 0; it computes what the masked model computes, to rounding.

    A layer that loses both blocks is deleted where the family allows it. What a tuning changed is worked into the
    output projections, in float32; a bias is made where there was none, and keeps its layer.
    The weights that are not sliced are shared with the dense model, which stays as it was unless `in_place`.
    The config of the result states its widths: as usual where all layers agree, in `per_layer_config` where they do
    not. The hidden size has a key of its own where the stock class would take it for another model's.
    """
    smaller = prunable if in_place else prunable.on(twin(prunable.model))
    layers = remaining_layers(prunable, mask, compensation)
    biased = stated_biases(prunable.model.config)
    biased |= set(cut(smaller, mask, compensation))
    keep_layers(smaller.model, prunable.adapter, layers)
    state_widths(smaller, mask, layers, biased)
    if prunable.has_hidden_units:
        state_hidden(smaller.model, prunable.adapter, int(mask.sum()))
    return smaller.model


def remaining_layers(prunable: PrunableModel, mask: Tensor, compensation: Compensation | None = None) -> list[int]:
    """The layers of the dense model that the smaller one has."""
    biased = stated_biases(prunable.model.config)
    return kept_layers(prunable, mask, biased | set(compensation.biases if compensation else ()))


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the modules that shares all tensors with `model`."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)


@torch.no_grad()
def cut(prunable: PrunableModel, mask: Tensor, compensation: Compensation | None = None) -> list[Key]:
    """Take the units out of a model in place, and return the blocks that got a bias.

    The config stays as it was, and so does the number of layers. What is left of a block without units adds nothing,
    its output bias included, unless a tuning gave it one; in post-norm families the bias stays.
    """
    compensation = compensation or Compensation()
    model, adapter, blocks = prunable.model, prunable.adapter, prunable.blocks
    biased = [key for key, bias in compensation.biases.items() if _add_bias(model.get_submodule(blocks[key].out), bias)]
    scales = prunable.units.views(compensation.scales) if compensation.scales is not None else {}
    for key, view in prunable.views(mask).items():
        kept = view.nonzero().flatten()
        if key == HIDDEN:
            _narrow(model, adapter, kept)
            continue
        block, silent = blocks[key], adapter.removable_layers and key not in compensation.biases
        cut_block(model, block, kept, block.groups_of(kept), silent)
        if key in scales and len(kept):
            _fold(model.get_submodule(blocks[key].out), scales[key][kept], blocks[key].width)
        if key in compensation.weights:
            replace_weight(model.get_submodule(blocks[key].out), compensation.weights[key])
    return biased


def _narrow(model: nn.Module, adapter: Adapter, kept: Tensor) -> None:
    """Keep the hidden channels `kept` of a model in place."""
    assert adapter.hidden is not None
    shared: dict[int, nn.Parameter] = {}
    for name, axis in adapter.hidden.parts:
        _take(model.get_submodule(name), axis, kept, shared)


@torch.no_grad()
def cut_block(model: nn.Module, block: Block, kept: Tensor, groups: Tensor, silent: bool, multiple: int = 1) -> None:
    """Keep the units `kept` (k,) int64 of a block in place; `silent`: without units it adds no output bias either.

    `groups` (g,) are `Block.groups_of` these, on the same device. An FFN has a `multiple` of channels: the last ones
    are the first one again, and nothing comes of them (`padding`).
    """
    if not len(kept) and block.path:
        _remove(model, block)
    elif len(kept) < block.count:
        more = padding(block, len(kept), multiple)
        _slice(model, block, torch.cat([kept, kept[:1].expand(more)]) if more else kept, groups)
        if more:
            out = model.get_submodule(block.out)
            weight, along = out.weight, dimension(out, "in")
            assert isinstance(weight, nn.Parameter)
            weight.narrow(along, weight.shape[along] - more * block.width, more * block.width).zero_()
    if not len(kept) and silent:
        _silence(model, block)


def padding(block: Block, count: int, multiple: int) -> int:
    """How many channels an FFN of `count` lacks to a multiple; no other block has any, nor one without or with all."""
    return -count % multiple if block.kind == "ffn" and count < block.count else 0


def _remove(model: nn.Module, block: Block) -> None:
    assert block.path is not None
    holds_out = block.out.startswith(block.path + ".")
    out = model.get_submodule(block.out)
    empty = EmptyBlock.in_place_of(out, block.layer, block.kind, holds_out, block.adds_residual)
    model.set_submodule(block.path, empty)
    if not holds_out:
        _take(out, "in", torch.empty(0, dtype=torch.long))


@torch.no_grad()
def _silence(model: nn.Module, block: Block) -> None:
    """Set the output bias of a block without units to zero, whichever module holds it now."""
    where = block.path if block.path and block.out.startswith(block.path + ".") else block.out
    holder = model.get_submodule(where)
    bias = getattr(holder, "bias", None)
    if isinstance(bias, nn.Parameter):
        holder.bias = nn.Parameter(torch.zeros_like(bias), requires_grad=bias.requires_grad)


def _slice(model: nn.Module, block: Block, kept: Tensor, groups: Tensor) -> None:
    features: dict[tuple[str, str], list[Tensor]] = {}
    shared = block.shared if len(groups) < block.groups or block.is_fused else ()
    for part, units in chain(((part, kept) for part in block.parts), ((part, groups) for part in shared)):
        of_part = part.offset + (units[:, None] * part.width + torch.arange(part.width, device=kept.device)).flatten()
        features.setdefault((part.module, part.axis), []).append(of_part)
    for (module, axis), indices in features.items():
        _take(model.get_submodule(module), axis, torch.cat(indices))
    if block.path and block.sizes:
        counted = numbers(*block.heads_left(len(kept), len(groups)), block.head_dim)
        set_sizes(model.get_submodule(block.path), [list(size) for size in block.sizes], counted)


def _fold(linear: nn.Module, scales: Tensor, width: int) -> None:
    """Multiply the input features of a linear module by the scale of their unit."""
    weight = linear.weight
    assert isinstance(weight, nn.Parameter)
    per_feature = scales.float().repeat_interleave(width).to(weight.device)
    folded = weight.float() * (per_feature[:, None] if isinstance(linear, Conv1D) else per_feature)
    linear.weight = nn.Parameter(folded.to(weight.dtype), requires_grad=weight.requires_grad)


def replace_weight(linear: nn.Module, weight: Tensor) -> None:
    """Give a linear module the weight (d, features)."""
    old = linear.weight
    assert isinstance(old, nn.Parameter)
    new = (weight.T if isinstance(linear, Conv1D) else weight).to(device=old.device, dtype=old.dtype)
    assert new.shape == old.shape
    linear.weight = nn.Parameter(new.contiguous(), requires_grad=old.requires_grad)


def _add_bias(linear: nn.Module, bias: Tensor) -> bool:
    """Add a bias (d,) to a linear module's own; whether it had none."""
    weight, old = linear.weight, linear.bias
    assert isinstance(weight, nn.Parameter)
    total = bias.float().to(weight.device) + (old.float() if isinstance(old, Tensor) else 0.0)
    linear.bias = nn.Parameter(total.to(weight.dtype), requires_grad=weight.requires_grad)
    return old is None


def _take(module: nn.Module, axis: str, index: Tensor, shared: dict[int, nn.Parameter] | None = None) -> None:
    """Keep the features `index` of a linear module, an embedding ("in") or a norm ("out") along an axis, in place.

    `shared` holds what has become of weights, so that those of two modules in one stay so.
    """
    for name in ("weight", "bias") if axis == "out" else ("weight",):
        old = getattr(module, name, None)
        if isinstance(old, nn.Parameter):
            new = None if shared is None else shared.get(id(old))
            if new is None:
                along = dimension(module, axis) if name == "weight" else 0
                new = nn.Parameter(old.index_select(along, index.to(old.device)), requires_grad=old.requires_grad)
            if shared is not None:
                shared[id(old)] = new
            setattr(module, name, new)
    set_features(module, axis, len(index))
