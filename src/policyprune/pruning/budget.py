"""What a mask may cost."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from policyprune.config.schema import Budget as BudgetConfig
from policyprune.errors import UsageError
from policyprune.models.adapter import Adapter, Block
from policyprune.pruning.space import Space


@dataclass(frozen=True)
class Budget:
    """Masks m with `sum of cost * m` over each pool at most `pool_limit`, and over each segment about `limit`.

    A pool is a set of units that share a limit which the final mask meets. A segment is a part of a pool that the
    search keeps at its own limit: the whole pool when the budget is global, one block when it is per layer.
    All tensors are float64 or int64: cost, segment, pool (n,); limit (segments,); pool_limit (pools,).
    """

    cost: Tensor
    segment: Tensor
    limit: Tensor
    pool: Tensor
    pool_limit: Tensor
    keep: float

    def spent(self, mask: Tensor) -> Tensor:
        """Cost of a mask or of keep probabilities (n,) in each pool: (pools,) float64."""
        return torch.zeros_like(self.pool_limit).index_add(0, self.pool, self.cost * mask.double())

    def to(self, device: torch.device) -> "Budget":
        """The same budget with its tensors on `device`."""
        cost, segment, limit = self.cost.to(device), self.segment.to(device), self.limit.to(device)
        return Budget(cost, segment, limit, self.pool.to(device), self.pool_limit.to(device), self.keep)

    def relaxed(self, keep: float) -> "Budget":
        """The same limits moved towards the dense model: `keep` 1 is dense, `self.keep` is this budget."""
        share = (keep - self.keep) / (1 - self.keep) if self.keep < 1 else 1.0
        limit = self.limit + share * (_sums(self.cost, self.segment, len(self.limit)) - self.limit)
        pool_limit = self.pool_limit + share * (_sums(self.cost, self.pool, len(self.pool_limit)) - self.pool_limit)
        return Budget(self.cost, self.segment, limit, self.pool, pool_limit, keep)


def make_budget(config: BudgetConfig, adapter: Adapter, space: Space) -> Budget:
    """Turn `budget.keep` into limits.

    `rate`: units, attention and FFN each by themselves, rounded to whole units. `params` and `flops`: parameters or
    multiply-accumulates of the transformer blocks, all units jointly. UsageError when no mask can meet the budget,
    with the smallest one that can be met.
    """
    kinds = sorted({group.kind for group in space.groups})
    group_of = space.group_of
    blocks = {(block.layer, block.kind): block for block in adapter.blocks}
    if config.name == "rate":
        cost = torch.ones(space.n, dtype=torch.float64)
        pool = torch.tensor([kinds.index(group.kind) for group in space.groups])[group_of]
        sizes = _sums(cost, pool, len(kinds))
        pool_limit = (config.keep * sizes).round()
    else:
        price = torch.tensor(
            [float(_price(config, blocks[g.layer, g.kind])) for g in space.groups], dtype=torch.float64
        )
        cost, pool = price[group_of], torch.zeros(space.n, dtype=torch.long)
        rest = (adapter.fixed_params if config.name == "params" else 0) + sum(
            block.count * _price(config, block) for key, block in blocks.items() if block.kind not in kinds
        )
        total = float(cost.sum()) + rest
        pool_limit = torch.tensor([config.keep * total - rest], dtype=torch.float64)
        if pool_limit < 0:
            smallest = math.ceil(rest / total * 1e4) / 1e4
            raise UsageError(
                f"budget.keep: {config.keep:g} of the {config.name} cannot be met with granularity "
                f"{'+'.join(kinds)}, the rest of the blocks takes more; at least {smallest:.4f} can be met"
            )
    if config.scope == "global":
        return Budget(cost, pool, pool_limit, pool, pool_limit, config.keep)
    pool_totals = _sums(cost, pool, len(pool_limit))
    shares = (pool_limit / pool_totals)[pool]
    limit = _sums(cost * shares, group_of, len(space.groups))
    return Budget(cost, group_of, limit, pool, pool_limit, config.keep)


def _price(config: BudgetConfig, block: Block) -> int:
    return block.params_per_unit if config.name == "params" else block.macs(config.sequence_length)


def _sums(values: Tensor, index: Tensor, count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.float64, device=values.device).index_add(0, index, values)
