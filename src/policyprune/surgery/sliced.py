"""Forwards of a smaller model without a second copy of its weights: a layer's are gathered as it runs, then freed."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from policyprune.models.adapter import Adapter, Block
from policyprune.pruning.space import Space
from policyprune.surgery.shrink import cut_block, twin


class Sliced:
    """`model` computes what the masked model computes, to rounding, and leaves out what is pruned.

    It shares all tensors with the dense model, which stays as it was. One layer at a time has weights of its own.
    """

    def __init__(self, model: PreTrainedModel, adapter: Adapter, space: Space) -> None:
        """`space` is that of heads and channels (`Space.units`)."""
        self.model = twin(model)
        self._space, self._device, self._silent = space, model.device, adapter.removable_layers
        self._kept: dict[tuple[int, str], Tensor] = {}
        blocks = {(block.layer, block.kind): block for block in adapter.blocks}
        for index, path in enumerate(adapter.layers):
            layer = self.model.get_submodule(path)
            own = [blocks[group.layer, group.kind] for group in space.groups if group.layer == index]
            self._hook(layer, own, _Whole(layer))

    def set(self, mask: Tensor) -> None:
        """The mask (n,) for the forwards to come; one that is not on the CPU makes the process wait for its device."""
        views = self._space.views(mask.bool().cpu())
        kept = [view.nonzero().flatten() for view in views.values()]
        parts = torch.cat(kept).to(self._device, non_blocking=True).split([len(own) for own in kept])
        self._kept = dict(zip(views, parts, strict=True))

    def _hook(self, layer: nn.Module, blocks: list[Block], whole: "_Whole") -> None:
        def cut(module: nn.Module, args: tuple[Any, ...]) -> None:
            for block in blocks:
                cut_block(self.model, block, self._kept[block.layer, block.kind], self._silent)

        def restore(module: nn.Module, args: tuple[Any, ...], out: object) -> None:
            whole.restore()

        layer.register_forward_pre_hook(cut)
        layer.register_forward_hook(restore, always_call=True)  # also after an error


class _Whole:
    """What a layer's modules are before they are cut."""

    def __init__(self, layer: nn.Module) -> None:
        self._state = [(own, dict(vars(own)), dict(own._parameters), dict(own._modules)) for own in layer.modules()]

    def restore(self) -> None:
        for module, attributes, parameters, modules in self._state:
            vars(module).clear()
            vars(module).update(attributes, _parameters=dict(parameters), _modules=dict(modules))
