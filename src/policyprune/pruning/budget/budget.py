"""What a mask may cost."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from policyprune.config.schema import Budget as BudgetConfig
from policyprune.errors import UsageError
from policyprune.models.adapter import Adapter
from policyprune.pruning.budget.block_latency import BlockLatency
from policyprune.pruning.budget.costs import check_alike, chunks, prices
from policyprune.pruning.space import Space, space_of

NO_LANES = torch.empty(0, dtype=torch.long)


def _lanes(segment: Tensor, count: int) -> Tensor:
    sizes = torch.bincount(segment, minlength=count)
    order = torch.argsort(segment, stable=True)
    place = torch.arange(len(segment), device=segment.device) - (sizes.cumsum(0) - sizes)[segment[order]]
    lanes = torch.full((count, max(1, int(sizes.max()))), len(segment), device=segment.device)
    lanes[segment[order], place] = order
    return lanes


@dataclass(frozen=True)
class Budget:
    """Masks whose cost over each pool is at most `pool_limit`, and over each segment about `limit`.

    A pool is a set of units that share a limit which the final mask meets. A segment is a part of a pool that the
    search keeps at its own limit: the whole pool when the budget is global, one block when it is per layer.
    Without a `space` a mask costs the sum of `cost * m`. In a space with gates a leaf costs only where all gates above
    it are 1, and gates cost nothing themselves; `opens` (n, 2) are the openings (pruning/prices.py) that a leaf pays
    for together with the others of its block or layer. `chunk` (n,) units of a block are kept or dropped together;
    `equal` asks for the same number of units in the blocks of all layers.
    All tensors are float64 or int64: cost, segment, pool (n,); limit (segments,); pool_limit (pools,); `lanes`, made of
    `segment`, holds the members of each, n where there are no more (segments, longest).
    """

    cost: Tensor
    segment: Tensor
    limit: Tensor
    pool: Tensor
    pool_limit: Tensor
    keep: float
    space: Space | None = None
    opening: Tensor | None = None
    opens: Tensor | None = None
    opening_gate: Tensor | None = None
    chunk: Tensor | None = None
    equal: bool = False
    lanes: Tensor = field(default=NO_LANES)

    def __post_init__(self) -> None:
        if self.lanes is NO_LANES:
            object.__setattr__(self, "lanes", _lanes(self.segment, len(self.limit)))

    def in_lanes(self, values: Tensor) -> Tensor:
        """Values (n,) by segment, filled up with zeros: (segments, longest). Their sums need no atomic additions."""
        return torch.cat([values, values.new_zeros(1)])[self.lanes]

    @property
    def linear(self) -> bool:
        """Whether a mask costs the sum of `cost * m`."""
        return self.opening is None and not (self.space and self.space.nested)

    def joint(self, s: Tensor) -> Tensor:
        """Decisions or their probabilities (..., n), each times those of the gates above it."""
        return self.space.joint(s) if self.space else s

    @property
    def leaf(self) -> Tensor:
        """Which decisions are leaves, (n,) bool."""
        return self.space.leaf if self.space else torch.ones(len(self.cost), dtype=torch.bool)

    def spent(self, mask: Tensor) -> Tensor:
        """Cost of a mask (n,), or a bound on the expected cost of keep probabilities (n,), in each pool: float64."""
        return self.spent_in(mask, self.pool, len(self.pool_limit))

    def spent_in(self, s: Tensor, index: Tensor, count: int) -> Tensor:
        """The same in each class of `index` (n,): (count,) float64.

        The decisions are independent, so a leaf's expected cost is its cost times the product of its probability and
        those of the gates above it. That of an opening is bounded by its cost times the smaller of the gates' product
        and the sum of the leaves' (the union bound). For a mask of 0 and 1 both are exact.
        """
        own = self.joint(s.double())
        spent = torch.zeros(count, dtype=torch.float64, device=s.device).index_add(0, index, self.cost * own)
        if self.opening is None:
            return spent
        assert self.opens is not None
        assert self.opening_gate is not None
        own_leaves = own * self.leaf.to(s.device)
        weight = torch.zeros_like(self.opening)
        class_of = torch.zeros(len(self.opening), dtype=torch.long, device=s.device)
        for column in self.opens.unbind(1):
            weight = weight.index_add(0, column, own_leaves)
            class_of = class_of.scatter(0, column, index)
        gate = torch.where(self.opening_gate >= 0, own[self.opening_gate.clamp(min=0)], 1.0)
        return spent.index_add(0, class_of, self.opening * torch.minimum(gate, weight))

    def to(self, device: torch.device) -> "Budget":
        """The same budget with its tensors on `device`."""
        names = ("cost", "segment", "limit", "pool", "pool_limit", "opening", "opens", "opening_gate", "chunk", "lanes")
        moved: dict[str, Any] = {name: None if (t := getattr(self, name)) is None else t.to(device) for name in names}
        return replace(self, **moved)

    def relaxed(self, keep: float) -> "Budget":
        """The same limits moved towards the dense model: `keep` 1 is dense, `self.keep` is this budget."""
        share = (keep - self.keep) / (1 - self.keep) if self.keep < 1 else 1.0
        dense = torch.ones_like(self.cost)
        limit = self.limit + share * (self.spent_in(dense, self.segment, len(self.limit)) - self.limit)
        pool_limit = self.pool_limit + share * (self.spent(dense) - self.pool_limit)
        return replace(self, limit=limit, pool_limit=pool_limit, keep=keep)

    def holding(self, mask: Tensor, held: Tensor) -> "Budget":
        """What is left for the other units while those in `held` (n,) bool stay as in a mask (n,), of linear cost."""
        taken = mask.double() * held
        return replace(
            self,
            cost=torch.where(held, 0, self.cost),
            limit=self.limit - self.spent_in(taken, self.segment, len(self.limit)),
            pool_limit=self.pool_limit - self.spent(taken),
        )

    def per_cost(self, metric: Tensor) -> Tensor:
        """A metric (n,) over the cost of each leaf, 0 at gates: float64."""
        return torch.where(self.cost > 0, metric.double() / self.cost.clamp(min=1e-300), 0.0)

    def per_block(self, space: Space) -> "Budget":
        """The same budget with each block held to its own share."""
        dense, group_of = torch.ones_like(self.cost), space.group_of.to(self.cost.device)
        totals = self.spent_in(dense, group_of, len(space.groups))
        share = (self.pool_limit / self.spent(dense))[self.pool]
        of_group = torch.zeros_like(totals).scatter(0, group_of, share)
        return replace(self, segment=group_of, limit=totals * of_group, lanes=NO_LANES)


def make_budget(
    config: BudgetConfig,
    adapter: Adapter,
    space: Space,
    latency: BlockLatency | None = None,
    align: int | None = None,
) -> Budget:
    """Turn `budget.keep` into limits.

    `rate`: leaves of all layers, each kind by itself, rounded to whole ones. `params`, `flops`, `latency`: parameters,
    multiply-accumulates or measured time (`latency`) of the transformer blocks, all units jointly. Layers that are not
    in the space keep what they have, the others meet the budget for them. UsageError when no mask can meet it, with the
    smallest one that can be met.
    """
    chunk = chunks(adapter, space, align) if align else None
    if config.scope == "uniform":
        check_alike(adapter, "budget.scope: uniform")
    if config.name == "rate":
        leaf = space.leaf
        kinds = sorted({g.kind for g, own in zip(space.groups, _leaf_groups(space), strict=True) if own})
        cost = leaf.double()
        pool = torch.tensor([kinds.index(g.kind) if g.kind in kinds else 0 for g in space.groups])[space.group_of]
        sizes = torch.zeros(len(kinds), dtype=torch.float64).index_add(0, pool, cost)
        every = space_of(adapter, {group.kind for group in space.groups}).groups
        total = torch.tensor([float(sum(g.count for g in every if g.kind == kind)) for kind in kinds])
        pool_limit = (config.keep * total.double()).round() - (total - sizes)
        if bool((pool_limit < 0).any()):
            raise _out_of_reach(config, space, float(((total - sizes) / total).max()))
        budget = Budget(cost, pool, pool_limit, pool, pool_limit, config.keep, space, chunk=chunk)
    else:
        found = prices(config, adapter, space, latency)
        pool = torch.zeros(space.n, dtype=torch.long)
        pool_limit = torch.tensor([config.keep * found.total - found.rest], dtype=torch.float64)
        if pool_limit < 0:
            raise _out_of_reach(config, space, found.rest / found.total)
        budget = Budget(found.cost, pool, pool_limit, pool, pool_limit, config.keep, space, chunk=chunk)
        if len(found.opening) > 1:
            budget = replace(budget, opening=found.opening, opens=found.opens, opening_gate=found.opening_gate)
        if config.keep == 1:
            dense = budget.spent(torch.ones_like(budget.cost))
            budget = replace(budget, limit=dense, pool_limit=dense)
    return budget if config.scope == "global" else replace(budget.per_block(space), equal=config.scope == "uniform")


def _out_of_reach(config: BudgetConfig, space: Space, rest: float) -> UsageError:
    """`rest`: the share of the dense model's cost that no mask of the space can take away."""
    smallest = math.ceil(rest * 1e4) / 1e4
    what = "units" if config.name == "rate" else config.name
    return UsageError(
        f"budget.keep: {config.keep:g} of the {what} cannot be met with granularity "
        f"{'+'.join(sorted({group.kind for group in space.groups}))}, the rest of the blocks takes more; "
        f"at least {smallest:.4f} can be met"
    )


def _leaf_groups(space: Space) -> list[bool]:
    return [bool(part.any()) for part in space.views(space.leaf).values()]
