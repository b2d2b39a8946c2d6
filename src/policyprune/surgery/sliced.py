"""Forwards of a smaller model without a second copy of its weights: a layer's are gathered as it runs, then freed."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from policyprune.models.adapter import Block
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import Key
from policyprune.surgery.shrink import cut_block, replace_weight, twin


class Sliced:
    """`model` computes what the masked model computes, to rounding, and leaves out what is pruned.

    It shares all tensors with the dense model, which stays as it was. One layer at a time has weights of its own.
    """

    def __init__(self, prunable: PrunableModel) -> None:
        self.model = twin(prunable.model)
        self._prunable = prunable
        self._kept: dict[Key, Tensor] = {}
        self._weights: Mapping[Key, Tensor] = {}
        for index, path in enumerate(prunable.adapter.layers):
            layer = self.model.get_submodule(path)
            self._hook(layer, [block for block in prunable.prunable_blocks if block.layer == index], _Whole(layer))

    def set(self, mask: Tensor, weights: Mapping[Key, Tensor] = MappingProxyType({})) -> None:
        """The mask (n,) for the forwards to come, and new `weights` (d, k) of output projections, by block.

        A mask that is not on the CPU makes the process wait for its device.
        """
        self._weights = weights
        views = self._prunable.views(mask)
        kept = [view.nonzero().flatten() for view in views.values()]
        parts = torch.cat(kept).to(self._prunable.device, non_blocking=True).split([len(units) for units in kept])
        self._kept = dict(zip(views, parts, strict=True))

    def _hook(self, layer: nn.Module, blocks: list[Block], whole: "_Whole") -> None:
        silent = self._prunable.adapter.removable_layers

        def cut(module: nn.Module, args: tuple[Any, ...]) -> None:
            for block in blocks:
                key = block.layer, block.kind
                cut_block(self.model, block, self._kept[key], silent)
                if key in self._weights:
                    replace_weight(self.model.get_submodule(block.out), self._weights[key])

        def restore(module: nn.Module, args: tuple[Any, ...], out: object) -> None:
            whole.restore()

        layer.register_forward_pre_hook(cut)
        layer.register_forward_hook(restore, always_call=True)  # also after an error


class _Whole:
    """What a layer's modules are before they are cut."""

    def __init__(self, layer: nn.Module) -> None:
        self._state = [
            (module, dict(vars(module)), dict(module._parameters), dict(module._modules)) for module in layer.modules()
        ]

    def restore(self) -> None:
        for module, attributes, parameters, modules in self._state:
            vars(module).clear()
            vars(module).update(attributes, _parameters=dict(parameters), _modules=dict(modules))
