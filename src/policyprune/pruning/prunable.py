"""A dense model together with what can be taken out of it: what pruning, surgery, tuning and evaluation work on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.errors import UsageError
from policyprune.models.adapter import Adapter, Block, adapt
from policyprune.models.query_heads import QUERY_HEAD, by_query_heads
from policyprune.pruning.masking import Masking
from policyprune.pruning.space import HIDDEN, Key, Space, space_of


@dataclass(frozen=True, eq=False)
class PrunableModel:
    """A dense model, the adapter that names its blocks, and the space of decisions on them.

    A mask (n,) of a model is over `units`, the heads and channels (or hidden channels) that may go: 0 where a unit is
    pruned. A search decides in `space`, which may hold gates on whole blocks and layers too; `space.expand` turns its
    decisions into a mask.
    """

    model: PreTrainedModel
    adapter: Adapter
    space: Space

    @staticmethod
    def of(
        model: PreTrainedModel, units: Sequence[str] = ("attention", "ffn"), spared: Sequence[float] = (0, 0)
    ) -> "PrunableModel":
        """Any transformers model of a known family; a model without weights (on the meta device) will do.

        `units` are the kinds that may go (granularity), `spared` the shares of the first and last layers that stay
        whole. UsageError for a family without a table, and for units that this model cannot lose.
        """
        adapter = adapt(model)
        if QUERY_HEAD in units:
            adapter = by_query_heads(model, adapter)
        return PrunableModel(model, adapter, space_of(adapter, units, spared))

    @staticmethod
    def over(model: PreTrainedModel, units: Space) -> "PrunableModel":
        """A model and the `units` of a mask that was found before, of which attention may be by query heads.

        UsageError where attention of this model is neither.
        """
        adapter = adapt(model)
        stated = {(group.layer, group.kind): group.count for group in units.groups}
        if any(b.kind == "attention" and stated.get((b.layer, b.kind), b.count) != b.count for b in adapter.blocks):
            adapter = by_query_heads(model, adapter)
        for block in adapter.blocks:
            count = stated.get((block.layer, block.kind), block.count)
            if count != block.count:
                raise UsageError(
                    f"mask: it is over {count} {block.kind} units in layer {block.layer}, this model has {block.count}"
                )
        return PrunableModel(model, adapter, units)

    def on(self, model: PreTrainedModel) -> "PrunableModel":
        """The same units of another model of this structure: a copy, or one in another data type."""
        return PrunableModel(model, self.adapter, self.space)

    @property
    def units(self) -> Space:
        """The heads and channels that a mask is over."""
        return self.space.units

    @property
    def has_hidden_units(self) -> bool:
        """Whether the units are hidden channels, which belong to no block."""
        return any((group.layer, group.kind) == HIDDEN for group in self.units.groups)

    @property
    def has_query_heads(self) -> bool:
        """Whether the units of attention are query heads, of which all groups keep the same number."""
        return any(block.groups for block in self.adapter.blocks)

    @property
    def device(self) -> torch.device:
        """Where the first layer is."""
        return self.model.device

    @cached_property
    def blocks(self) -> dict[Key, Block]:
        """All blocks of the model, by (layer, kind)."""
        return {(block.layer, block.kind): block for block in self.adapter.blocks}

    @cached_property
    def prunable_blocks(self) -> list[Block]:
        """The blocks that have units, in the order of the space; none where these are hidden channels."""
        keys = [(group.layer, group.kind) for group in self.units.groups]
        return [self.blocks[key] for key in keys if key in self.blocks]

    def views(self, mask: Tensor) -> dict[Key, Tensor]:
        """A mask (n,) as bool on the CPU, by (layer, kind) of the block: (count,) each."""
        return self.units.views(mask.bool().cpu())

    def kept_counts(self, mask: Tensor) -> dict[Key, int]:
        """How many units each block of the model keeps under a mask (n,), those that cannot be pruned included."""
        counts = {key: block.count for key, block in self.blocks.items()}
        return counts | {key: int(view.sum()) for key, view in self.views(mask).items() if key in counts}

    @contextmanager
    def masking(self) -> Iterator[Masking]:
        """During the block the model computes under the mask that was set last; dense while none is set."""
        with Masking(self.adapter, self.units).on(self.model) as masking:
            yield masking

    @contextmanager
    def masked(self, mask: Tensor) -> Iterator[PreTrainedModel]:
        """During the block the model computes under a mask (n,), or (B, n), one for each sequence."""
        with self.masking() as masking:
            masking.set(torch.atleast_2d(mask).float().to(self.device))
            yield self.model
