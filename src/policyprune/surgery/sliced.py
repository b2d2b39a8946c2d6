"""Forwards of a smaller model without a second copy of its weights: a layer's are gathered as it runs, then freed."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from policyprune.models.adapter import Block
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import Key
from policyprune.surgery.shrink import cut_block, padding, replace_weight, twin

MULTIPLE = {"cuda": 64}  # of channels, by device: matrix products in half precision are slow at other widths
NO_WEIGHTS: Mapping[Key, Tensor] = MappingProxyType({})


class Sliced:
    """`model` computes what the masked model computes, to rounding, and leaves out what is pruned.

    It shares all tensors with the dense model, which stays as it was. One layer at a time has weights of its own. FFNs
    that lose channels are computed with a `multiple` of them, by default of what the device is fast at.
    """

    def __init__(self, prunable: PrunableModel, multiple: int | None = None) -> None:
        self.model = twin(prunable.model)
        self._multiple = MULTIPLE.get(prunable.device.type, 1) if multiple is None else multiple
        self._prunable = prunable
        self._kept: dict[Key, tuple[Tensor, Tensor]] = {}  # units, and the groups of query heads
        self._weights = NO_WEIGHTS
        self._layers = [self.model.get_submodule(path) for path in prunable.adapter.layers]
        self._memory = _Memory(self._layers)
        for index, layer in enumerate(self._layers):
            self._hook(index, [block for block in prunable.prunable_blocks if block.layer == index], _Whole(layer))

    def set(self, mask: Tensor, weights: Mapping[Key, Tensor] = NO_WEIGHTS) -> None:
        """The mask (n,) for the forwards to come, and new `weights` (d, k) of output projections, by block.

        A mask that is not on the CPU makes the process wait for its device.
        """
        self._memory.forget()
        self._set(mask, weights)

    def set_for(self, inputs: bytes, mask: Tensor, weights: Mapping[Key, Tensor] = NO_WEIGHTS) -> None:
        """The same for one forward on the inputs that a name stands for; the mask is on the CPU.

        The first layers, as far as they are what they were in the forward before it on the same inputs, give what they
        gave then. Weights of one mask are always the same ones.
        """
        self._set(mask, weights)
        content = [b""] * len(self._layers)
        for (layer, kind), view in self._prunable.views(mask).items():
            content[layer] += kind.encode() + view.numpy().tobytes()
        self._memory.recall(inputs, content)

    def _set(self, mask: Tensor, weights: Mapping[Key, Tensor]) -> None:
        self._weights = weights
        views = self._prunable.views(mask)
        kept = [view.nonzero().flatten() for view in views.values()]
        kept += [self._prunable.blocks[key].groups_of(units) for key, units in zip(views, kept, strict=True)]
        parts = torch.cat(kept).to(self._prunable.device, non_blocking=True).split([len(units) for units in kept])
        self._kept = dict(zip(views, zip(parts, parts[len(views) :], strict=False), strict=True))

    def _hook(self, index: int, blocks: list[Block], whole: "_Whole") -> None:
        layer, memory, silent = self._layers[index], self._memory, self._prunable.adapter.removable_layers

        def cut(module: nn.Module, args: tuple[Any, ...]) -> None:
            for block in blocks if index >= memory.start else []:
                key = block.layer, block.kind
                cut_block(self.model, block, *self._kept[key], silent, self._multiple)
                if key in self._weights:
                    more = padding(block, len(self._kept[key][0]), self._multiple) * block.width
                    weight = functional.pad(self._weights[key], (0, more)) if more else self._weights[key]
                    replace_weight(self.model.get_submodule(block.out), weight)

        def restore(module: nn.Module, args: tuple[Any, ...], out: object) -> None:
            if index >= memory.start:
                whole.restore()
                memory.keep(index, out)

        layer.register_forward_pre_hook(cut)
        layer.register_forward_hook(restore, always_call=True)  # also after an error


class _Memory:
    """What the layers of the last forward were, and what each gave.

    Layers before `start` are not computed: the last of them gives what it gave, the ones before it anything.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        self._layers = layers
        self._inputs: bytes | None = None
        self._content: list[bytes] = []
        self._given: dict[int, Any] = {}
        self._remembers = False
        self.start = 0

    def forget(self) -> None:
        """Compute all layers, and keep nothing."""
        self._remembers, self._inputs = False, None
        self._given.clear()
        self._begin_at(0)

    def recall(self, inputs: bytes, content: list[bytes]) -> None:
        """Begin at the first layer whose content is not what it was."""
        same = 0
        if inputs == self._inputs:
            pairs = zip(content, self._content, strict=True)
            same = next((index for index, (new, old) in enumerate(pairs) if new != old), len(content))
        same = min(same, len(self._given))  # an error may have ended the last forward
        for index in [index for index in self._given if index >= same]:
            del self._given[index]
        self._remembers, self._inputs, self._content = True, inputs, content
        self._begin_at(same)

    def keep(self, index: int, out: Any) -> None:
        """What a layer gave; a copy, since some families add to it in place."""
        if self._remembers:
            states = out[0] if isinstance(out, tuple) else out
            if isinstance(states, Tensor):  # not after an error
                self._given[index] = (states.clone(), *out[1:]) if isinstance(out, tuple) else states.clone()

    def _begin_at(self, start: int) -> None:
        for layer in self._layers[: max(self.start, start)]:
            vars(layer).pop("forward", None)
        for layer in self._layers[:start]:
            layer.forward = lambda *args, **kwargs: self._given[start - 1]
        self.start = start


class _Whole:
    """What a layer's modules are before they are cut."""

    def __init__(self, layer: nn.Module) -> None:
        self._state = [
            (
                module,
                {name: value for name, value in vars(module).items() if name not in ("_parameters", "_modules")},
                dict(module._parameters),
                dict(module._modules),
            )  # not these two themselves, in which a cut module is put
            for module in layer.modules()
        ]

    def restore(self) -> None:
        for module, attributes, parameters, modules in self._state:
            vars(module).clear()
            vars(module).update(attributes, _parameters=dict(parameters), _modules=dict(modules))
