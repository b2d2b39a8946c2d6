"""From a score per unit to a mask that meets the budget."""

from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import Tensor

from policyprune.pruning.budget.budget import Budget

SLACK = 1e-6  # what rounding of the costs may add up to, of the cheapest item


@dataclass(frozen=True)
class Items:
    """What is kept or dropped together: single leaves, or `chunk` leaves of a block that are neighbours by score.

    `members` (K, c) are the leaves of each item, filled up with repetitions; per item (K,): its mean score, its cost
    and one of its leaves, `first`, which shares segment, pool and openings with the others.
    """

    members: Tensor
    score: Tensor
    cost: Tensor
    first: Tensor

    def opening_costs(self, order: Tensor, budget: Budget) -> Tensor:
        """What each item of an order (K,) pays for openings that no item before it, of its segment, has paid for."""
        extra = torch.zeros(len(order), dtype=torch.float64)
        if budget.opening is None:
            return extra
        assert budget.opens is not None
        segment = budget.segment[self.first[order]]
        for column in budget.opens[self.first[order]].unbind(1):
            keys, inverse = torch.unique(column * len(budget.limit) + segment, return_inverse=True)
            earliest = torch.full((len(keys),), len(order)).scatter_reduce(0, inverse, torch.arange(len(order)), "amin")
            extra[earliest] += budget.opening[column[earliest]]
        return extra


def items_of(scores: Tensor, budget: Budget) -> Items:
    """The items of a budget, all on the CPU; leaves that do not fill a chunk are in none."""
    leaves = budget.leaf.nonzero().flatten()
    if budget.chunk is None:
        return Items(leaves[:, None], scores[leaves], budget.cost[leaves], leaves)
    assert budget.space is not None
    order = leaves[torch.argsort(scores[leaves], descending=True, stable=True)]
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
        members,
        zeros.index_add(0, number, scores[order]) / sizes,
        zeros.index_add(0, number, budget.cost[order]),
        first,
    )


def select(scores: Tensor, budget: Budget) -> Tensor:
    """Keep the best units that fit: scores (n,) -> mask (n,) bool on the CPU.

    Only the scores of leaves count; a gate is kept where a leaf below it is. Each segment takes its items (a leaf, or
    as many as `align` keeps together) in the order of the scores (ties: first unit first) until the next one does not
    fit; what rounding leaves in a pool goes to the best items that still fit, in a per-layer budget one more per
    segment at most. With equal costs (`rate`) a pool's limit is met exactly.
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
    cost, segment = items.cost[order] + items.opening_costs(order, budget), budget.segment[items.first[order]]
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
    opened = None if budget.opening is None else torch.arange(len(budget.opening)) == 0
    if opened is not None:
        assert budget.opens is not None
        opened[budget.opens[mask].flatten()] = True
    order = torch.argsort(items.score, descending=True, stable=True)
    order = order[~mask[items.first[order]]]
    for pool in range(len(left)):
        own = order[budget.pool[items.first[order]] == pool]
        _fill_pool(mask, items, budget, own, float(left[pool]), opened)


def _fill_pool(mask: Tensor, items: Items, budget: Budget, order: Tensor, left: float, opened: Tensor | None) -> None:
    """The same in one pool, whose items that are not taken yet are `order` (k,); `opened` (O,) is brought up to date.

    One after the other would take seconds. In each round all that fit by themselves are taken, the first of each
    segment in a per-layer budget, as long as they fit together and none opens something: what it opens makes the later
    ones cheaper. So there are no more rounds than openings and different costs.
    """
    slack = SLACK * min(1.0, float(items.cost.min())) if len(items.cost) else 0.0
    per_layer = len(budget.limit) != len(budget.pool_limit)
    topped = torch.zeros(len(budget.limit), dtype=torch.bool)
    while len(order := order[items.cost[order] <= left + slack]):
        segment, price = budget.segment[items.first[order]], items.cost[order]
        if opened is not None:
            assert budget.opens is not None
            assert budget.opening is not None
            price = price + torch.where(opened, 0, budget.opening)[budget.opens[items.first[order]]].sum(1)
        tried = ((price <= left + slack) & ~topped[segment]).nonzero().flatten()
        if per_layer:
            place = torch.arange(len(tried))
            earliest = torch.full_like(topped, len(tried), dtype=torch.long)
            earliest = earliest.scatter_reduce(0, segment[tried], place, "amin")
            tried = tried[earliest[segment[tried]] == place]
        ends = (price > items.cost[order])[tried].nonzero().flatten()[:1]
        running = price[tried].cumsum(0)
        count = int((running <= left + slack).long().cumprod(0).sum())
        count = min([count, *(ends + 1).tolist()])
        if not count:
            return
        taken = order[tried[:count]]
        mask[items.members[taken].flatten()] = True
        left -= float(running[count - 1])
        topped[segment[tried[:count]]] = per_layer
        if opened is not None and budget.opens is not None:
            opened[budget.opens[items.first[taken]].flatten()] = True
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
            cost = items.cost[ranked[i]] + items.opening_costs(ranked[i], budget)
            fitting.append(int((cost.cumsum(0) <= budget.limit[i] * (1 + 1e-9)).sum()))
        counts[kind] = min(fitting)

    def wear(tried: dict[str, int]) -> Tensor:
        worn = torch.zeros_like(mask)
        for kind, blocks in of_kind.items():
            for i in blocks:
                worn[items.members[ranked[i][: tried[kind]]].flatten()] = True
        return worn

    def fits(tried: dict[str, int]) -> bool:
        enough = all(len(ranked[i]) >= tried[kind] for kind in kinds for i in of_kind[kind])
        return enough and bool((budget.spent(wear(tried)) <= budget.pool_limit * (1 + 1e-9)).all())

    for kind in kinds:
        more = range(counts[kind], max(len(ranked[i]) for i in of_kind[kind]) + 1)
        counts[kind] += bisect_left(more, True, lo=1, key=lambda count: not fits({**counts, kind: count})) - 1
    mask |= wear(counts)


def by_metric(metric: Tensor, budget: Budget, per_cost: bool) -> Tensor:
    """The one-shot mask (n,) of a metric (n,): the units with the highest metric, per cost or as it is, that fit."""
    metric, budget = metric.detach().cpu().double(), budget.to(torch.device("cpu"))
    return select(budget.per_cost(metric) if per_cost else metric, budget)
