"""A coarser search space: units that are decided on together."""

from dataclasses import dataclass

import torch
from torch import Tensor

from policyprune.pruning.budget.budget import Budget
from policyprune.pruning.budget.selection import select
from policyprune.pruning.space import Space


@dataclass(frozen=True)
class Decisions:
    """D keep-or-drop decisions over n units: each head by itself, channels in chunks of similar importance.

    `of` (n,) is the decision of each unit, `rank` (n,) orders the units of a decision, 0 the most important. Per
    decision (D,): its block, depth (0 to 1), whether it is about channels or a gate, its cost (0 of a gate), and its
    mean importance, standardised in its kind (`importance`) and in its block (`block_importance`).
    """

    of: Tensor
    rank: Tensor
    block: Tensor
    depth: Tensor
    channels: Tensor
    gate: Tensor
    cost: Tensor
    importance: Tensor
    block_importance: Tensor
    budget: Budget

    @property
    def count(self) -> int:
        """D."""
        return len(self.block)

    def share(self, mask: Tensor) -> Tensor:
        """Share of each decision's units that a mask (n,) keeps: (D,)."""
        sizes = torch.bincount(self.of, minlength=self.count)
        return torch.zeros(self.count).index_add(0, self.of, mask.float()) / sizes

    def mask(self, action: Tensor, probabilities: Tensor) -> Tensor:
        """The mask (n,) of an action (D,) in {0, 1}, made to meet the budget exactly.

        What was decided to be kept goes first, then the rest, each by probability (D,); within a decision the more
        important units go first, so that the budget may end inside a decision.
        """
        action, probabilities = (
            self.budget.joint(action[self.of]),
            self.budget.joint(probabilities.clamp(0, 1)[self.of]),
        )
        order = action * 2 + probabilities
        return select(order.double() - 1e-6 * self.rank / (1 + self.rank.max()), self.budget)


def make_decisions(importance: Tensor, space: Space, budget: Budget, chunk: int) -> Decisions:
    """Group the units by their importance (n,): `chunk` channels of a block to a decision, heads one by one."""
    importance = importance.detach().cpu().double()
    of, rank = torch.zeros(space.n, dtype=torch.long), torch.zeros(space.n, dtype=torch.float64)
    block: list[int] = []
    depth: list[float] = []
    channels: list[bool] = []
    start, last = 0, max(group.layer for group in space.groups) or 1
    for index, group in enumerate(space.groups):
        size = chunk if group.kind == "ffn" else 1
        order = importance[start : start + group.count].argsort(descending=True, stable=True) + start
        for own in order.split(size):
            of[own] = len(block)
            rank[own] = torch.arange(len(own), dtype=torch.float64)
            block.append(index)
            depth.append(group.layer / last)
            channels.append(group.kind == "ffn")
        start += group.count
    count = len(block)
    blocks = torch.tensor(block)
    kinds = sorted({group.kind for group in space.groups})
    kind = torch.tensor([kinds.index(group.kind) for group in space.groups])[blocks]
    cost = torch.zeros(count, dtype=torch.float64).index_add(0, of, budget.cost.cpu())
    mean = torch.zeros(count, dtype=torch.float64).index_add(0, of, importance) / torch.bincount(of)
    logs = (mean + 1e-12 * mean.max().clamp(min=1e-30)).log()
    return Decisions(
        of,
        rank,
        blocks,
        torch.tensor(depth),
        torch.tensor(channels),
        ~space.finest[_first(of, count)],
        cost,
        _standardised(logs, kind),
        _standardised(logs, blocks),
        budget,
    )


def _first(of: Tensor, count: int) -> Tensor:
    """One unit of each decision, (D,)."""
    return torch.zeros(count, dtype=torch.long).scatter(0, of, torch.arange(len(of)))


def _standardised(values: Tensor, index: Tensor) -> Tensor:
    """Values minus the mean of their class, over its deviation: (D,) float32."""
    sizes = torch.bincount(index)
    zeros = torch.zeros(len(sizes), dtype=values.dtype)
    centred = values - (zeros.index_add(0, index, values) / sizes)[index]
    deviation = (zeros.index_add(0, index, centred.square()) / sizes).sqrt()
    return (centred / deviation.clamp(min=1e-6)[index]).float()
