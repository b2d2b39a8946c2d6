"""What a mask may cost."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from policyprune.config.schema import Budget as BudgetOptions
from policyprune.errors import UsageError
from policyprune.models.adapter import Adapter
from policyprune.pruning.budget.block_latency import BlockLatency
from policyprune.pruning.budget.costs import FixedCosts, check_equal_widths, chunks, costs_of
from policyprune.pruning.space import Space, space_of

NO_LANES = torch.empty(0, dtype=torch.long)


def _lanes(segment: Tensor, count: int) -> Tensor:
    sizes = torch.bincount(segment, minlength=count)
    order = torch.argsort(segment, stable=True)
    place = torch.arange(len(segment), device=segment.device) - (sizes.cumsum(0) - sizes)[segment[order]]
    lanes = torch.full((count, max(1, int(sizes.max()))), len(segment), device=segment.device)
    lanes[segment[order], place] = order
    return lanes


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Masks whose cost over each pool is at most `pool_limit`, and over each segment about `limit`.

    A pool is a set of decisions that share a limit which the final mask meets. A segment is a part of a pool that the
    search keeps at its own limit: the whole pool when the budget is global, one block when it is per layer.
    Without a `space` a mask costs the sum of `cost * m`. In a space with gates one of the finest decisions costs only
    where all gates above it are 1, and gates cost nothing themselves; `fixed` is what blocks and layers cost once.
    `chunk` (n,) units of a block are kept or dropped together; `equal` asks for the same number of units in the blocks
    of all layers.
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
    fixed: FixedCosts | None = None
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
        return self.fixed is None and not (self.space and self.space.nested)

    @property
    def gives_shares(self) -> bool:
        """Whether each block has a limit of its own."""
        return not torch.equal(self.segment, self.pool)

    def joint(self, s: Tensor) -> Tensor:
        """Decisions or their probabilities (..., n), each times those of the gates above it."""
        return self.space.joint(s) if self.space else s

    @property
    def finest(self) -> Tensor:
        """Which decisions have nothing finer below them, (n,) bool."""
        return self.space.finest if self.space else torch.ones(len(self.cost), dtype=torch.bool)

    def spent(self, mask: Tensor) -> Tensor:
        """Cost of a mask (n,), or a bound on the expected cost of keep probabilities (n,), in each pool: float64."""
        return self.spent_in(mask, self.pool, len(self.pool_limit))

    def spent_in(self, s: Tensor, index: Tensor, count: int) -> Tensor:
        """The same in each class of `index` (n,): (count,) float64.

        The decisions are independent, so the expected cost of one is its cost times the product of its probability and
        those of the gates above it. A fixed cost is bounded by itself times the smaller of the gates' product and the
        sum of those of the decisions that pay for it (the union bound). For a mask of 0 and 1 both are exact.
        """
        joint = self.joint(s.double())
        spent = torch.zeros(count, dtype=torch.float64, device=s.device).index_add(0, index, self.cost * joint)
        if self.fixed is None:
            return spent
        kept = joint * self.finest.to(s.device)
        weight = torch.zeros_like(self.fixed.cost)
        class_of = torch.zeros(len(self.fixed.cost), dtype=torch.long, device=s.device)
        for column in self.fixed.of_decision.unbind(1):
            weight = weight.index_add(0, column, kept)
            class_of = class_of.scatter(0, column, index)
        gate = torch.where(self.fixed.gate >= 0, joint[self.fixed.gate.clamp(min=0)], 1.0)
        return spent.index_add(0, class_of, self.fixed.cost * torch.minimum(gate, weight))

    def to(self, device: torch.device) -> "Budget":
        """The same budget with its tensors on `device`."""
        names = ("cost", "segment", "limit", "pool", "pool_limit", "fixed", "chunk", "lanes")
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

    def per_cost(self, scores: Tensor) -> Tensor:
        """Scores (n,) over the cost of each decision, 0 at gates: float64."""
        return torch.where(self.cost > 0, scores.double() / self.cost.clamp(min=1e-300), 0.0)

    def per_block(self, space: Space) -> "Budget":
        """The same budget with each block held to its own share."""
        dense, group_of = torch.ones_like(self.cost), space.group_of.to(self.cost.device)
        totals = self.spent_in(dense, group_of, len(space.groups))
        share = (self.pool_limit / self.spent(dense))[self.pool]
        of_group = torch.zeros_like(totals).scatter(0, group_of, share)
        return replace(self, segment=group_of, limit=totals * of_group, lanes=NO_LANES)


def make_budget(
    options: BudgetOptions,
    adapter: Adapter,
    space: Space,
    latency: BlockLatency | None = None,
    align: int | None = None,
) -> Budget:
    """Turn `budget.keep` into limits.

    `rate`: the finest decisions of all layers, each kind by itself, rounded to whole ones. `params`, `flops`,
    `latency`: parameters, multiply-accumulates or measured time (`latency`) of the transformer blocks, all units
    jointly. Layers that are not in the space keep what they have, the others meet the budget for them. UsageError when
    no mask can meet it, with the smallest one that can be met.
    """
    chunk = chunks(adapter, space, align) if align else None
    if options.scope == "uniform":
        check_equal_widths(adapter, "budget.scope: uniform")
    of_rate = options.name == "rate"
    budget = _by_rate(options, adapter, space) if of_rate else _by_cost(options, adapter, space, latency)
    budget = replace(budget, chunk=chunk)
    if options.scope == "global":
        return budget
    return replace(budget.per_block(space), equal=options.scope == "uniform")


def _by_rate(options: BudgetOptions, adapter: Adapter, space: Space) -> Budget:
    kinds = sorted({group.kind for group in space.groups if space.is_finest(group)})
    cost = space.finest.double()
    pool = torch.tensor([kinds.index(g.kind) if g.kind in kinds else 0 for g in space.groups])[space.group_of]
    sizes = torch.zeros(len(kinds), dtype=torch.float64).index_add(0, pool, cost)
    every = space_of(adapter, {group.kind for group in space.groups}).groups
    total = torch.tensor([float(sum(g.count for g in every if g.kind == kind)) for kind in kinds])
    limit = (options.keep * total.double()).round() - (total - sizes)
    if bool((limit < 0).any()):
        raise _out_of_reach(options, space, float(((total - sizes) / total).max()))
    return Budget(cost=cost, segment=pool, limit=limit, pool=pool, pool_limit=limit, keep=options.keep, space=space)


def _by_cost(options: BudgetOptions, adapter: Adapter, space: Space, latency: BlockLatency | None) -> Budget:
    costs = costs_of(options, adapter, space, latency)
    pool = torch.zeros(space.n, dtype=torch.long)
    limit = torch.tensor([options.keep * costs.total - costs.rest], dtype=torch.float64)
    if limit < 0:
        raise _out_of_reach(options, space, costs.rest / costs.total)
    budget = Budget(
        cost=costs.cost,
        segment=pool,
        limit=limit,
        pool=pool,
        pool_limit=limit,
        keep=options.keep,
        space=space,
        fixed=costs.fixed,
    )
    if options.keep < 1:
        return budget
    dense = budget.spent(torch.ones_like(budget.cost))
    return replace(budget, limit=dense, pool_limit=dense)


def _out_of_reach(options: BudgetOptions, space: Space, rest: float) -> UsageError:
    """`rest`: the share of the dense model's cost that no mask of the space can take away."""
    smallest = math.ceil(rest * 1e4) / 1e4
    what = "units" if options.name == "rate" else options.name
    return UsageError(
        f"budget.keep: {options.keep:g} of the {what} cannot be met with granularity "
        f"{'+'.join(sorted({group.kind for group in space.groups}))}, the rest of the blocks takes more; "
        f"at least {smallest:.4f} can be met"
    )
