"""The units that a search decides on, in one flat order."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import repeat

import torch
from torch import Tensor

from policyprune.errors import UsageError
from policyprune.models.adapter import Adapter
from policyprune.models.query_heads import QUERY_HEAD

Key = tuple[int, str]  # layer and kind of a block, or of a gate on one

HIDDEN: Key = (-1, "hidden")  # layer and kind of the one group of hidden channels, which are the same in all layers
GATES = {"attention_block": ("attention",), "ffn_block": ("ffn",), "layer": ("attention", "ffn")}


@dataclass(frozen=True)
class Group:
    """The `count` units of one block, or the one decision on a whole block or layer."""

    layer: int
    kind: str
    count: int


@dataclass(frozen=True)
class Space:
    """An ordered list of groups. A mask is a flat tensor (..., n) of 0 and 1; groups are views into it.

    A group of kind `attention` or `ffn` holds the heads (KV groups) or channels of a block. One of kind
    `attention_block`, `ffn_block` or `layer` is a gate: a single decision on everything below it. The `finest`
    decisions are those with nothing finer below them. What is left of the model is stated by a mask over `units`, the
    heads and channels that the search can take away: a unit is kept when its own decision and all gates above it are 1
    (`expand`).

    Where units are query heads, a decision is on one of every key/value head in the layer, so that all of these keep
    the same number. `ranks` say which of a covered group's decisions each unit goes by, () where it has its own: at
    first the first query heads go together, `ranked` puts those together that matter least.
    """

    groups: tuple[Group, ...]
    covered: tuple[Group, ...] = ()  # heads and channels below the groups; empty where they are the groups
    ranks: tuple[tuple[int, ...], ...] = ()  # of each covered group

    @cached_property
    def n(self) -> int:
        """Number of decisions."""
        return sum(group.count for group in self.groups)

    @cached_property
    def group_of(self) -> Tensor:
        """Index of each decision's group, (n,) int64."""
        counts = torch.tensor([group.count for group in self.groups])
        return torch.repeat_interleave(torch.arange(len(self.groups)), counts)

    def views(self, flat: Tensor) -> dict[Key, Tensor]:
        """Views (..., count) into a flat tensor (..., n), by (layer, kind)."""
        parts = flat.split([group.count for group in self.groups], dim=-1)
        return {(group.layer, group.kind): part for group, part in zip(self.groups, parts, strict=True)}

    @cached_property
    def units(self) -> "Space":
        """The heads and channels alone: the space of masks that models are shrunk by."""
        return Space(self.covered) if self.covered else self

    def ranked(self, scores: Tensor) -> "Space":
        """The same with the query heads of each key/value head in the order of their scores (units.n,), lowest first.

        A decision is then on those that are at the same place in this order.
        """
        if not self.ranks:
            return self
        ranks = list(self.ranks)
        for index, view in enumerate(self.units.views(scores.cpu()).values()):
            if ranks[index]:
                heads = view.view(-1, max(ranks[index]) + 1)
                ranks[index] = tuple(heads.argsort(dim=1, stable=True).argsort(dim=1).flatten().tolist())
        return replace(self, ranks=tuple(ranks))

    @cached_property
    def starts(self) -> dict[Key, int]:
        """Place of the first decision of each group, by (layer, kind)."""
        starts, total = {}, 0
        for group in self.groups:
            starts[group.layer, group.kind] = total
            total += group.count
        return starts

    @cached_property
    def finest(self) -> Tensor:
        """Which decisions have nothing finer below them, (n,) bool."""
        gates = self._parents[self._parents < self.n]
        finest = torch.ones(self.n, dtype=torch.bool)
        finest[gates] = False
        return finest

    def is_finest(self, group: Group) -> bool:
        """Whether the decisions of a group have nothing finer below them."""
        return bool(self.finest[self.starts[group.layer, group.kind]])

    @cached_property
    def nested(self) -> bool:
        """Whether some decisions are on what others decide on too."""
        return not bool(self.finest.all())

    def joint(self, s: Tensor) -> Tensor:
        """Decisions or their probabilities (..., n), each times those of the gates above it."""
        if not self.nested:
            return s
        padded = torch.cat([s, torch.ones_like(s[..., :1])], -1)
        above = self._parents.to(s.device)
        return s * padded[..., above[:, 0]] * padded[..., above[:, 1]]

    def closed(self, mask: Tensor) -> Tensor:
        """A mask (n,) whose gates are 1 exactly where one of the finest decisions below them is."""
        if not self.nested:
            return mask
        below = torch.zeros(self.n + 1, dtype=torch.long)
        for column in self._parents.unbind(1):
            below.index_add_(0, column, (mask & self.finest).long())
        return torch.where(self.finest, mask, below[:-1] > 0)

    def expand(self, masks: Tensor) -> Tensor:
        """Decisions or their probabilities (..., n) -> what that makes of the units, (..., units.n)."""
        if not self.covered:
            return masks
        padded = torch.cat([masks, torch.ones_like(masks[..., :1])], -1)
        unit, block, layer = self._deciding.to(masks.device).unbind(1)
        return padded[..., unit] * padded[..., block] * padded[..., layer]

    def pooled(self, values: Tensor) -> Tensor:
        """Values of the units (..., units.n) -> of the decisions, (..., n): the sum over the units below each."""
        if not self.covered:
            return values
        total = values.new_zeros(*values.shape[:-1], self.n + 1)
        for column in self._deciding.to(values.device).unbind(1):
            total.index_add_(-1, column, values)
        return total[..., :-1]

    @cached_property
    def _deciding(self) -> Tensor:
        """For each unit its own decision, the one on its block and the one on its layer, n where there is none."""
        rows = []
        for group, ranks in zip(self.units.groups, self.ranks or repeat(()), strict=False):
            start = self.starts.get((group.layer, group.kind))
            above = [self.starts.get((group.layer, kind), self.n) for kind in (f"{group.kind}_block", "layer")]
            for index in ranks or range(group.count):
                rows.append([self.n if start is None else start + index, *above])
        return torch.tensor(rows, dtype=torch.long).view(-1, 3)

    @cached_property
    def _parents(self) -> Tensor:
        """The gates above each decision, (n, 2), n where there is none."""
        none = self.n
        above = {
            group: [none, none]
            if group.kind == "layer"
            else [
                none if group.kind in GATES else self.starts.get((group.layer, f"{group.kind}_block"), none),
                self.starts.get((group.layer, "layer"), none),
            ]
            for group in self.groups
        }
        rows = [above[group] for group in self.groups for _ in range(group.count)]
        return torch.tensor(rows, dtype=torch.long).view(-1, 2)


def space_of(adapter: Adapter, units: Iterable[str], spared: Sequence[float] = (0, 0)) -> Space:
    """The decisions of the kinds in `units` (granularity) in the order of the layers, the gates of a layer last.

    `spared` are shares of the layers, rounded to whole ones: so many first and last layers have no decisions, they keep
    all units. UsageError for hidden channels where the family cannot lose them, and where no layer is left.
    """
    kinds = {"attention" if unit == QUERY_HEAD else unit for unit in units}
    if HIDDEN[1] in kinds:
        return Space((Group(*HIDDEN, _hidden_channels(adapter)),))
    below = kinds | {kind for gate in kinds & set(GATES) for kind in GATES[gate]}
    count = len(adapter.layers)
    first, last = (math.floor(share * count + 0.5) for share in spared)
    if first + last >= count:
        raise UsageError(
            f"granularity.spared: {list(spared)} leaves none of {count} layers to prune, use smaller shares"
        )
    inner = [block for block in adapter.blocks if first <= block.layer < count - last]
    covered = tuple(Group(b.layer, b.kind, b.count) for b in inner if b.kind in below and b.count)
    ranks = tuple(tuple(range(b.decisions)) * b.groups for b in inner if b.kind in below and b.count)
    if not kinds & set(GATES) and not any(ranks):
        return Space(covered)
    finer = [replace(group, count=len(set(own)) or group.count) for group, own in zip(covered, ranks, strict=True)]
    groups: list[Group] = []
    for layer in sorted({group.layer for group in covered}):
        blocks = [group for group in finer if group.layer == layer]
        groups += [group for group in blocks if group.kind in kinds]
        groups += [Group(layer, f"{group.kind}_block", 1) for group in blocks if f"{group.kind}_block" in kinds]
        groups += [Group(layer, "layer", 1)] if "layer" in kinds else []
    return Space(tuple(groups), covered, ranks if any(ranks) else ())


def _hidden_channels(adapter: Adapter) -> int:
    if adapter.hidden is None:
        raise UsageError(
            "granularity: hidden needs to know where the hidden channels are, and the table of this family does not "
            "say it (docs/add-a-model.md)"
        )
    if adapter.hidden.obstacle:
        raise UsageError(f"granularity: hidden channels cannot be removed from this model: {adapter.hidden.obstacle}")
    return adapter.hidden.count
