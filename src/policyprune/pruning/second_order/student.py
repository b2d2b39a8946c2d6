"""The pruned model while its blocks are fitted, one after the other."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from policyprune.models.adapter import Block
from policyprune.models.layerwise import projection
from policyprune.pruning.prunable import PrunableModel


class Student:
    """The model with the blocks that were fitted so far; the others keep what a mask (n,) keeps."""

    def __init__(self, prunable: PrunableModel, mask: Tensor) -> None:
        self._prunable, self.mask = prunable, mask.bool().cpu().clone()
        self._given: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}  # kept columns, weight, bias, by module
        self._pruned = False

    def prune(self, on: bool) -> None:
        """Be the student, or the dense teacher."""
        self._pruned = on
        self._masking.set(self.mask.float()[None].to(self._prunable.device) if on else None)

    def keep(self, block: Block, kept: Tensor) -> None:
        """Of a block the units `kept` (k,) alone."""
        view = self._prunable.units.views(self.mask)[block.layer, block.kind]
        view.fill_(False)
        view[kept] = True

    def give(self, block: Block, columns: Tensor, weight: Tensor) -> None:
        """Compute a block's output with a weight (d, k) for the features `columns` (k,)."""
        old, bias = projection(self._prunable.model, block)
        self._given[block.out] = columns, weight.to(old.dtype), bias

    def settle(self, block: Block, kept: Tensor, columns: Tensor, weight: Tensor | None) -> None:
        """From now on have the units `kept` (k,) of a block, and a weight for their features unless it is None."""
        self.keep(block, kept)
        if weight is not None:
            self.give(block, columns, weight)
        self.prune(self._pruned)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Masks and weights act during the block."""
        model = self._prunable.model
        names = {block.out for block in self._prunable.adapter.blocks if block.count}
        with self._prunable.masking() as self._masking:
            handles = [model.get_submodule(name).register_forward_hook(self._hook(name)) for name in names]
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
            if not self._pruned or name not in self._given:
                return None
            columns, weight, bias = self._given[name]
            return functional.linear(args[0][..., columns], weight, bias)

        return hook
