"""Fewer layers: delete those that nothing is left of."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from policyprune.models.adapter import Adapter, Block
from policyprune.models.unequal import EmptyBlock
from policyprune.pruning.space import HIDDEN, Space


def kept_layers(adapter: Adapter, space: Space, mask: Tensor, biased: Iterable[tuple[int, str]] = ()) -> list[int]:
    """Layers that remain under a mask (n,) of units: those with a unit left, and the first one where there is none.

    A block in `biased` still adds its bias and keeps its layer. All remain in a family whose empty layers still compute
    something (post-norm).
    """
    if not adapter.removable_layers:
        return list(range(len(adapter.layers)))
    kept = {(block.layer, block.kind): block.count for block in adapter.blocks}
    kept |= {key: int(view.sum()) for key, view in space.views(mask.bool()).items() if key != HIDDEN}
    return sorted({layer for (layer, _), count in kept.items() if count} | {layer for layer, _ in biased}) or [0]


def keep_layers(model: PreTrainedModel, adapter: Adapter, kept: list[int]) -> None:
    """Delete the other layers of a model in place and tell the later ones their new place; its config stays."""
    if len(kept) == len(adapter.layers):
        return
    layers = nn.ModuleList([model.get_submodule(adapter.layers[layer]) for layer in kept])
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if isinstance(module, EmptyBlock):
                module.layer = index
            elif hasattr(module, adapter.family.layer_index):
                setattr(module, adapter.family.layer_index, index)
    model.set_submodule(adapter.layers[0].rpartition(".")[0], layers)


def state_depth(config: PreTrainedConfig, adapter: Adapter, kept: list[int]) -> None:
    """Write into a config how many layers there are and what each of them is, for the layers `kept`."""
    if len(kept) == len(adapter.layers):
        return
    family = adapter.family
    for key in family.layer_lists:
        stated = getattr(config, key, None)
        if stated:
            setattr(config, key, [stated[layer] for layer in kept])
    setattr(config, family.layer_count, len(kept))


@torch.no_grad()
def silence(model: nn.Module, block: Block) -> None:
    """Set the output bias of a block without units to zero, whichever module holds it now."""
    where = block.path if block.path and block.out.startswith(block.path + ".") else block.out
    holder = model.get_submodule(where)
    bias = getattr(holder, "bias", None)
    if isinstance(bias, nn.Parameter):
        holder.bias = nn.Parameter(torch.zeros_like(bias), requires_grad=bias.requires_grad)
