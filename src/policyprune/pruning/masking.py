"""Masked forwards: the outputs of pruned units are multiplied by zero, nothing is sliced.

Hidden channels are masked at the norms (pruning/hidden_masking.py). A block without units adds nothing to the residual,
its output bias included, except in post-norm families, where an empty layer cannot be deleted and the bias stays.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from policyprune.models.adapter import Adapter
from policyprune.pruning.hidden_masking import hooks
from policyprune.pruning.space import HIDDEN, Space


class Masking:
    """Hooks that multiply by masks, and the masks."""

    def __init__(self, adapter: Adapter, space: Space) -> None:
        blocks = {(block.layer, block.kind): block for block in adapter.blocks}
        self._blocks = [blocks[group.layer, group.kind] for group in space.groups if group.kind != HIDDEN[1]]
        self._hidden = None if self._blocks else adapter.hidden
        self._names = [block.out for block in self._blocks] or [HIDDEN[1]]
        widths = [block.width for block in self._blocks] or [1]
        start, index = 0, []
        for group, width in zip(space.groups, widths, strict=True):
            index.append(torch.arange(start, start + group.count).repeat_interleave(width))
            start += group.count
        self._unit_of_feature = torch.cat(index)
        self._sizes = [len(features) for features in index]
        self._silent = adapter.removable_layers  # a block without units adds nothing, not even its bias
        self._current: dict[str, Tensor] | None = None

    def set(self, masks: Tensor | None) -> None:
        """Masks (M, n), M = 1 or one per sequence of the batch, for the forwards to come; None: dense."""
        if masks is None:
            self._current = None
            return
        self._unit_of_feature = self._unit_of_feature.to(masks.device)
        expanded = masks.index_select(-1, self._unit_of_feature).unsqueeze(1)
        parts = expanded.split(self._sizes, dim=-1)
        self._current = dict(zip(self._names, parts, strict=True))

    def _hook(self, name: str) -> Any:
        def multiply(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if self._current is None:
                return None
            x = args[0]
            mask = self._current[name].to(device=x.device, dtype=x.dtype, non_blocking=True)
            if x.dim() == 2:  # sequences and positions in one dimension, as in OPT's FFN
                return ((x.view(len(mask), -1, x.shape[-1]) * mask).view_as(x), *args[1:])
            return (x * mask, *args[1:])

        return multiply

    def _silencer(self, name: str) -> Any:
        def multiply(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
            if self._current is None:
                return None
            alive = (self._current[name] != 0).any(-1, keepdim=True).to(device=out.device, dtype=out.dtype)
            if out.dim() == 2:  # sequences and positions in one dimension
                return (out.view(len(alive), -1, out.shape[-1]) * alive).view_as(out)
            return out * alive

        return multiply

    @contextmanager
    def on(self, model: nn.Module) -> Iterator["Masking"]:
        """Install the hooks for the duration of a `with` block."""
        handles = [
            model.get_submodule(block.out).register_forward_pre_hook(self._hook(block.out)) for block in self._blocks
        ]
        for out in (block.out for block in self._blocks if self._silent):
            if getattr(model.get_submodule(out), "bias", None) is not None:
                handles.append(model.get_submodule(out).register_forward_hook(self._silencer(out)))
        if self._hidden is not None:
            handles += hooks(model, self._hidden, lambda: self._current[HIDDEN[1]] if self._current else None)
        try:
            yield self
        finally:
            self._current = None
            for handle in handles:
                handle.remove()
