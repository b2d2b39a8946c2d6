"""Kwon et al., NeurIPS 2022: Fisher search for the split between heads and channels, then greedy rearrangement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from policyprune.config.fields import named, setting
from policyprune.config.schema import Config, Optimizer
from policyprune.errors import UsageError
from policyprune.pruning.optimizers.problem import FORGETFUL, Found, Problem, Report, State

if TYPE_CHECKING:
    from torch import Tensor

    from policyprune.pruning.budget.budget import Budget
    from policyprune.pruning.budget.selection import Items
    from policyprune.pruning.space import Space


@dataclass(kw_only=True)
class Kwon(Optimizer):
    """Fisher search and rearrangement of Kwon et al., NeurIPS 2022."""

    name: str = named("kwon")
    rearrange: bool = setting(True, help="swap units within each block while that lowers the Fisher loss")

    back_propagates: ClassVar[bool] = True
    handles_nested: ClassVar[bool] = False
    handles_hidden: ClassVar[bool] = False

    def check(self, config: Config) -> None:
        """Heads and channels, by Fisher scores."""
        if config.importance.name != "fisher":
            raise UsageError(
                f"importance: {config.importance.name!r}, but optimizer=kwon searches by Fisher alone; use fisher"
            )
        blocks = sorted(set(config.granularity.units) & {"attention_block", "ffn_block", "layer"})
        if blocks:
            raise UsageError(
                f"optimizer: kwon splits a budget between heads and channels, granularity={config.granularity.name} "
                f"has {', '.join(blocks)}; use one_shot with importance=fisher, policy_gradient or ppo"
            )

    def search(self, problem: Problem, report: Report, state: State = FORGETFUL) -> Found:
        """The mask with the least Fisher loss under the budget; back-propagates once, searches without the model."""
        assert problem.gradients is not None
        gradients = problem.gradients()
        mask = best_split(gradients.square().mean(0), problem.space, problem.budget)
        if self.rearrange:
            mask = rearrange(gradients, mask, problem.space)
        return Found(mask, mask.float(), forwards=0)


def best_split(fisher: Tensor, space: Space, budget: Budget) -> Tensor:
    """Keep the heads and channels with the most Fisher information (n,), their numbers the best that the budget allows.

    Where heads and channels share a limit, every number of heads is tried with as many channels as then fit, and the
    split that loses the least information is taken (algorithm 1 of the paper); what a block costs besides its units
    is paid by the first of them. Otherwise, and with whole blocks or layers as units, the most informative are taken.
    """
    import torch

    from policyprune.pruning.budget.selection import items_of, select

    kinds = sorted({group.kind for group in space.groups})
    if kinds != ["attention", "ffn"] or len(budget.pool_limit) > 1 or len(budget.limit) != len(budget.pool_limit):
        return select(fisher, budget)
    fisher, budget = fisher.cpu().double(), budget.to(torch.device("cpu"))
    items = items_of(fisher, budget)
    kind_of = torch.tensor([kinds.index(group.kind) for group in space.groups])[space.group_of[items.first]]
    orders = [(kind_of == k).nonzero().flatten() for k in range(2)]
    orders = [order[items.score[order].argsort(descending=True, stable=True)] for order in orders]
    costs = [(items.cost[order] + items.fixed_costs(order, budget)).cumsum(0) for order in orders]
    sums = items.score * _sizes(items)
    gains = [torch.cat([torch.zeros(1, dtype=torch.float64), sums[order].cumsum(0)]) for order in orders]
    spent = torch.cat([torch.zeros(1, dtype=torch.float64), costs[0]])
    left = float(budget.pool_limit[0]) - spent
    fitting = torch.searchsorted(costs[1], left + 1e-6, right=True)
    total = torch.where(left >= 0, gains[0] + gains[1][fitting.clamp(max=len(costs[1]))], -torch.inf)
    first = int(total.argmax())
    mask = torch.zeros(space.n, dtype=torch.bool)
    mask[items.members[orders[0][:first]].flatten()] = True
    mask[items.members[orders[1][: int(fitting[first])]].flatten()] = True
    if budget.fixed is not None:  # a layer that keeps both blocks has paid twice for what they share
        return select(torch.where(mask, fisher + 2 * fisher.max() + 1, fisher), budget)
    return mask


def _sizes(items: Items) -> Tensor:
    """Leaves of each item, (K,)."""
    return 1 + (items.members[:, 1:] != items.first[:, None]).sum(1)


def rearrange(gradients: Tensor, mask: Tensor, space: Space) -> Tensor:
    """Swap units within each block while that lowers the Fisher loss with interactions, (1 - m)^T F (1 - m).

    F is the block's Fisher matrix from the gradients (rows, n). Greedy: the best swap at a time, until none helps.
    """
    result = mask.clone()
    blocks, views = space.views(gradients), space.views(result)
    for key, block_mask in views.items():
        g = blocks[key].double()
        matrix = g.T @ g / len(g)
        for _ in range(len(block_mask)):
            pruned, kept = (~block_mask).nonzero().flatten(), block_mask.nonzero().flatten()
            if not len(pruned) or not len(kept):
                break
            pull = matrix[:, pruned].sum(1)
            diagonal = matrix.diagonal()
            change = (diagonal - 2 * pull)[pruned][:, None] + (diagonal + 2 * pull)[kept] - 2 * matrix[pruned][:, kept]
            best = int(change.argmin())
            if float(change.flatten()[best]) >= -1e-12 * float(matrix.diagonal().sum()):
                break
            block_mask[pruned[best // len(kept)]], block_mask[kept[best % len(kept)]] = True, False
    return result
