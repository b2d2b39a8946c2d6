"""The units that a search decides on, in one flat order."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from policyprune.models.adapter import Adapter


@dataclass(frozen=True)
class Group:
    """The `count` units of one attention or FFN block."""

    layer: int
    kind: str
    count: int


@dataclass(frozen=True)
class Space:
    """An ordered list of groups. A mask is a flat tensor (..., n) of 0 and 1; groups are views into it."""

    groups: tuple[Group, ...]

    @cached_property
    def n(self) -> int:
        """Number of units."""
        return sum(group.count for group in self.groups)

    @cached_property
    def group_of(self) -> Tensor:
        """Index of each unit's group, (n,) int64."""
        counts = torch.tensor([group.count for group in self.groups])
        return torch.repeat_interleave(torch.arange(len(self.groups)), counts)

    def views(self, flat: Tensor) -> dict[tuple[int, str], Tensor]:
        """Views (..., count) into a flat tensor (..., n), by (layer, kind)."""
        parts = flat.split([group.count for group in self.groups], dim=-1)
        return {(group.layer, group.kind): part for group, part in zip(self.groups, parts, strict=True)}


def space_of(adapter: Adapter, units: Iterable[str]) -> Space:
    """The units of the kinds in `units` (granularity) in the order of the layers."""
    kinds = set(units)
    return Space(tuple(Group(b.layer, b.kind, b.count) for b in adapter.blocks if b.kind in kinds and b.count))
