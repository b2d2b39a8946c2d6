"""A policy over levels: pi_b(l) proportional to exp(theta_bl - mu c_bl), whose expected cost is the budget."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from policyprune.pruning.optimizers.levels.widths import Widths

BISECTIONS, DOUBLINGS, TEMPERATURES = 50, 60, 25
TOLERANCE = 1e-9  # of a pool's dense cost, for rounding
NEVER = -math.inf


@dataclass(frozen=True, kw_only=True)
class LevelPolicy:
    """Independent choices of a level for each of B blocks; the state of it is theta (B, L), float64 on the CPU.

    `cost` (B, L) is what a level costs, rising, in shares of its pool's dense cost; `open` (B, L) says which levels
    there are: some blocks have fewer. `pool` (B,) is a block's pool, `limit` (P,) what those of one may cost together.
    """

    cost: Tensor
    open: Tensor
    pool: Tensor
    limit: Tensor

    @staticmethod
    def of(widths: Widths) -> "LevelPolicy":
        """Over the levels of the blocks, under their budget."""
        costs = widths.costs
        cost = pad_sequence(costs, batch_first=True)
        counts = torch.tensor([len(own) for own in costs])
        dense = torch.zeros_like(widths.budget.pool_limit).index_add(0, widths.pools, cost.amax(1))
        scale = dense.clamp(min=1e-300)
        return LevelPolicy(
            cost=cost / scale[widths.pools][:, None],
            open=torch.arange(cost.shape[1]) < counts[:, None],
            pool=widths.pools,
            limit=widths.budget.pool_limit / scale,
        )

    def start(self, losses: Sequence[Tensor], spread: float) -> Tensor:
        """theta (B, L) = -losses / T from what each block loses at its levels (levels,).

        The temperature T is such that a block is drawn from about `spread` levels: the exponential of the mean entropy.
        """
        lost = pad_sequence(list(losses), batch_first=True)
        scale = float(lost.mean().clamp(min=1e-12))
        low, high = math.log(scale) - 30, math.log(scale) + 30
        for _ in range(TEMPERATURES):
            middle = (low + high) / 2
            sharp = self.entropy(self.log_probabilities(-lost / math.exp(middle))) < math.log(spread)
            low, high = (middle, high) if sharp else (low, middle)
        return -lost / math.exp(high)

    def log_probabilities(self, theta: Tensor) -> Tensor:
        """log pi (B, L), with the gradient of mu: in each pool it follows theta, so that the expected cost stays."""
        price = self._price(theta.detach())
        log_pi = self._at(theta, price)
        pi = log_pi.exp()
        mean = (pi * self.cost).sum(1)
        spread = self._by_pool((pi * self.cost.square()).sum(1) - mean.square()).clamp(min=1e-12)
        excess = self._by_pool(mean)
        return self._at(theta, price + (excess - excess.detach()) / spread.detach())

    def expected_cost(self, log_pi: Tensor) -> Tensor:
        """Of each pool, (P,)."""
        return self._by_pool((log_pi.exp() * self.cost).sum(1))

    def entropy(self, log_pi: Tensor) -> Tensor:
        """Mean over blocks, a scalar."""
        return -(log_pi.exp() * log_pi.masked_fill(~self.open, 0)).sum(1).mean()

    def draw(self, log_pi: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """So many independent samples: levels (count, B)."""
        return torch.multinomial(log_pi.exp(), count, replacement=True, generator=generator).T

    def repaired(self, levels: Tensor, log_pi: Tensor) -> list[int]:
        """Levels within the budget from levels (B,), and none that could be larger.

        A block has a level less, or more, as long as that is wanted, each time the one whose change is the likeliest.
        """
        levels, rows = levels.clone(), torch.arange(len(levels))
        for change in (-1, 1):
            while True:
                left = self.limit - self._by_pool(self.cost[rows, levels])
                changed = (levels + change).clamp(0, self.cost.shape[1] - 1)
                dearer = self.cost[rows, changed] - self.cost[rows, levels]
                wanted = left < -TOLERANCE if change < 0 else left >= 0
                possible = wanted[self.pool] & (changed != levels) & self.open[rows, changed]
                if change > 0:
                    possible &= dearer <= left[self.pool] + TOLERANCE
                if not bool(possible.any()):
                    break
                gain = log_pi[rows, changed] - log_pi[rows, levels]
                block = int(torch.where(possible, gain, NEVER).argmax())
                levels[block] = changed[block]
        return [int(level) for level in levels]

    def likeliest(self, widths: Widths, log_pi: Tensor) -> list[int]:
        """Of all widths within the budget those that the policy draws most often."""
        pairs = zip(widths.curves, (-log_pi).tolist(), strict=True)
        return widths.allocate([dict(zip(curve.levels, own, strict=False)) for curve, own in pairs])

    def divergence(self, before: Tensor, after: Tensor) -> Tensor:
        """KL of the second from the first of two log pi (B, L), mean over blocks: a scalar."""
        return (before.exp() * (before - after).masked_fill(~self.open, 0)).sum(1).mean()

    def _price(self, theta: Tensor) -> Tensor:
        """mu (P,) by bisection; as large as needed where no probabilities spend the limit."""
        low, high = torch.full_like(self.limit, -1.0), torch.full_like(self.limit, 1.0)
        for _ in range(DOUBLINGS):
            over = self._expected(theta, high) > self.limit
            under = self._expected(theta, low) < self.limit
            if not bool((over | under).any()):
                break
            high, low = torch.where(over, 2 * high, high), torch.where(under, 2 * low, low)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            over = self._expected(theta, middle) > self.limit
            low, high = torch.where(over, middle, low), torch.where(over, high, middle)
        return (low + high) / 2

    def _expected(self, theta: Tensor, price: Tensor) -> Tensor:
        return self.expected_cost(self._at(theta, price))

    def _at(self, theta: Tensor, price: Tensor) -> Tensor:
        logits = theta - price[self.pool][:, None] * self.cost
        return logits.masked_fill(~self.open, NEVER).log_softmax(1)

    def _by_pool(self, values: Tensor) -> Tensor:
        return torch.zeros_like(self.limit).index_add(0, self.pool, values)
