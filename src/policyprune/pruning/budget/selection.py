"""From a score per unit to a mask that meets the budget."""

from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import Tensor

from policyprune.pruning.budget.budget import Budget

SLACK = 1e-6  # what rounding of the costs may add up to, of the cheapest item


@dataclass(frozen=True, kw_only=True)
class Items:
    """What is kept or dropped together: single decisions, or `chunk` of a block that are neighbours by score.

    These are of the finest decisions. `members` (K, c) are those of each item, filled up with repetitions; per item
    (K,): its mean score, its cost and one of its decisions, `first`, which shares segment, pool and fixed costs with
    the others.
    """

    members: Tensor
    score: Tensor
    cost: Tensor
    first: Tensor

    def fixed_costs(self, order: Tensor, budget: Budget) -> Tensor:
        """What each item of an order (K,) pays of the fixed costs that no item before it, of its segment, has paid."""
        extra = torch.zeros(len(order), dtype=torch.float64)
        if budget.fixed is None:
            return extra
        segment = budget.segment[self.first[order]]
        for column in budget.fixed.of_decision[self.first[order]].unbind(1):
            keys, inverse = torch.unique(column * len(budget.limit) + segment, return_inverse=True)
            earliest = torch.full((len(keys),), len(order)).scatter_reduce(0, inverse, torch.arange(len(order)), "amin")
            extra[earliest] += budget.fixed.cost[column[earliest]]
        return extra


def items_of(scores: Tensor, budget: Budget) -> Items:
    """The items of a budget, all on the CPU; decisions that do not fill a chunk are in none."""
    finest = budget.finest.nonzero().flatten()
    if budget.chunk is None:
        return Items(members=finest[:, None], score=scores[finest], cost=budget.cost[finest], first=finest)
    assert budget.space is not None
    order = finest[torch.argsort(scores[finest], descending=True, stable=True)]
    order = order[torch.argsort(budget.space.group_of[order], stable=True)]
    block, size = budget.space.group_of[order], budget.chunk[order]
    begins = torch.zeros(int(block.max()) + 2, dtype=torch.long)
    begins[1:] = torch.bincount(block).cumsum(0)
    place = torch.arange(len(order)) - begins[block]
    full = place // size < torch.bincount(block)[block] // size
    order, size, place = order[full], size[full], place[full]
    number = (place % size == 0).long().cumsum(0) - 1
    count, widest = int(number[-1]) + 1, int(size.max())
    first = order[place % size == 0]
    members = first[:, None].repeat(1, widest)
    members[number, place % size] = order
    sizes = torch.bincount(number, minlength=count)
    zeros = torch.zeros(count, dtype=torch.float64)
    return Items(
        members=members,
        score=zeros.index_add(0, number, scores[order]) / sizes,
        cost=zeros.index_add(0, number, budget.cost[order]),
        first=first,
    )


def select(scores: Tensor, budget: Budget) -> Tensor:
    """Keep the best units that fit: scores (n,) -> mask (n,) bool on the CPU.

    Only the scores of the finest decisions count; a gate is kept where one below it is. Each segment takes its items (a
    decision, or as many as `align` keeps together) in the order of the scores (ties: first unit first) until the next
    one does not fit; what rounding leaves in a pool goes to the best items that still fit, in a per-layer budget one
    more per segment at most. With equal costs (`rate`) a pool's limit is met exactly.
    """
    scores, budget = scores.detach().cpu().double(), budget.to(torch.device("cpu"))
    items = items_of(scores, budget)
    mask = torch.zeros(len(scores), dtype=torch.bool)
    if budget.equal:
        _take_equal(mask, items, budget)
    else:
        _take_in_order(mask, items, budget)
        _fill(mask, items, budget)
    return budget.space.closed(mask) if budget.space else mask


def _take_in_order(mask: Tensor, items: Items, budget: Budget) -> None:
    order = torch.argsort(items.score, descending=True, stable=True)
    order = order[torch.argsort(budget.segment[items.first[order]], stable=True)]  # by segment, by score inside
    cost, segment = items.cost[order] + items.fixed_costs(order, budget), budget.segment[items.first[order]]
    running = cost.cumsum(0)
    before = torch.zeros(len(budget.limit), dtype=torch.float64).scatter_reduce(
        0, segment, running - cost, "amin", include_self=False
    )
    tolerance = 1e-9 * budget.limit.clamp(min=1)
    over = running - before[segment] > (budget.limit + tolerance)[segment]
    mask[items.members[order[~over]].flatten()] = True


def _fill(mask: Tensor, items: Items, budget: Budget) -> None:
    """Give what is left of each pool to the best items that still fit, in the order of their scores."""
    closed = budget.space.closed(mask) if budget.space else mask
    left = budget.pool_limit - budget.spent(closed)
    paid = None
    if budget.fixed is not None:
        paid = torch.arange(len(budget.fixed.cost)) == 0
        paid[budget.fixed.of_decision[mask].flatten()] = True
    order = torch.argsort(items.score, descending=True, stable=True)
    order = order[~mask[items.first[order]]]
    for pool in range(len(left)):
        in_pool = order[budget.pool[items.first[order]] == pool]
        _fill_pool(mask, items, budget, in_pool, float(left[pool]), paid)


def _fill_pool(mask: Tensor, items: Items, budget: Budget, order: Tensor, left: float, paid: Tensor | None) -> None:
    """The same in one pool, whose items that are not taken yet are `order` (k,).

    `paid` (F,) says which fixed costs are paid and is brought up to date. One item after the other would take seconds.
    In each round all that fit by themselves are taken, the first of each segment in a per-layer budget, as long as they
    fit together and none pays a fixed cost: the later ones are cheaper then. So there are no more rounds than fixed and
    different costs.
    """
    slack = SLACK * min(1.0, float(items.cost.min())) if len(items.cost) else 0.0
    per_layer = len(budget.limit) != len(budget.pool_limit)
    topped = torch.zeros(len(budget.limit), dtype=torch.bool)
    while len(order := order[items.cost[order] <= left + slack]):
        segment, cost = budget.segment[items.first[order]], items.cost[order]
        if paid is not None and budget.fixed is not None:
            unpaid = torch.where(paid, 0, budget.fixed.cost)
            cost = cost + unpaid[budget.fixed.of_decision[items.first[order]]].sum(1)
        tried = ((cost <= left + slack) & ~topped[segment]).nonzero().flatten()
        if per_layer:
            place = torch.arange(len(tried))
            earliest = torch.full_like(topped, len(tried), dtype=torch.long)
            earliest = earliest.scatter_reduce(0, segment[tried], place, "amin")
            tried = tried[earliest[segment[tried]] == place]
        ends = (cost > items.cost[order])[tried].nonzero().flatten()[:1]
        running = cost[tried].cumsum(0)
        count = int((running <= left + slack).long().cumprod(0).sum())
        count = min([count, *(ends + 1).tolist()])
        if not count:
            return
        taken = order[tried[:count]]
        mask[items.members[taken].flatten()] = True
        left -= float(running[count - 1])
        topped[segment[tried[:count]]] = per_layer
        if paid is not None and budget.fixed is not None:
            paid[budget.fixed.of_decision[items.first[taken]].flatten()] = True
        order = order[int(tried[count - 1]) + 1 :]


def _take_equal(mask: Tensor, items: Items, budget: Budget) -> None:
    """The same number of items in every block of a kind: what the tightest share allows, then as many as still fit."""
    space = budget.space
    assert space is not None
    block = space.group_of[items.first]
    kinds = sorted({group.kind for group in space.groups}, reverse=True)  # channels first, they are the smaller ones
    of_kind = {kind: [i for i, group in enumerate(space.groups) if group.kind == kind] for kind in kinds}
    order = torch.argsort(items.score, descending=True, stable=True)
    by_block = order[torch.argsort(block[order], stable=True)]
    ranked = by_block.split(torch.bincount(block, minlength=len(space.groups)).tolist())
    counts = {}
    for kind, blocks in of_kind.items():
        fitting = []
        for i in blocks:
            cost = items.cost[ranked[i]] + items.fixed_costs(ranked[i], budget)
            fitting.append(int((cost.cumsum(0) <= budget.limit[i] * (1 + 1e-9)).sum()))
        counts[kind] = min(fitting)

    def mask_of(tried: dict[str, int]) -> Tensor:
        kept = torch.zeros_like(mask)
        for kind, blocks in of_kind.items():
            for i in blocks:
                kept[items.members[ranked[i][: tried[kind]]].flatten()] = True
        return kept

    def fits(tried: dict[str, int]) -> bool:
        enough = all(len(ranked[i]) >= tried[kind] for kind in kinds for i in of_kind[kind])
        return enough and bool((budget.spent(mask_of(tried)) <= budget.pool_limit * (1 + 1e-9)).all())

    for kind in kinds:
        more = range(counts[kind], max(len(ranked[i]) for i in of_kind[kind]) + 1)
        counts[kind] += bisect_left(more, True, lo=1, key=lambda count: not fits({**counts, kind: count})) - 1
    mask |= mask_of(counts)


def one_shot_mask(scores: Tensor, budget: Budget, per_cost: bool) -> Tensor:
    """The mask (n,) of importance scores (n,) alone: the units with the highest, per cost or as it is, that fit."""
    scores, budget = scores.detach().cpu().double(), budget.to(torch.device("cpu"))
    return select(budget.per_cost(scores) if per_cost else scores, budget)
