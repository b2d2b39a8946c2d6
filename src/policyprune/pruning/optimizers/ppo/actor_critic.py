"""Actor and critic of PPOM: small networks over the features of decisions."""

import torch
from torch import Tensor, nn

from policyprune.pruning.optimizers.ppo.decisions import Decisions

HIDDEN = 32
BISECTIONS = 40


class ActorCritic(nn.Module):
    """Bernoulli logits of D decisions, and the value of a state.

    A logit is the sum of a free number per decision (started from the warm start), of a network over the decision's
    features, which lets a layer or a kind be moved as one, and of a pull towards the current mask. The logits are then
    shifted so that the expected cost is the budget.
    """

    def __init__(self, decisions: Decisions, start: Tensor, horizon: int) -> None:
        super().__init__()
        self.decisions, self.horizon = decisions, horizon
        blocks = int(decisions.block.max()) + 1
        self.free = nn.Parameter(start.clone())
        self.block = nn.Parameter(torch.zeros(blocks))
        self.pull = nn.Parameter(torch.tensor(0.5))
        self.net = _network(7)
        self.critic = _network(blocks + 1)

    def logits(self, share: Tensor, step: Tensor) -> Tensor:
        """Budgeted logits (S, D) of states: kept share of each decision (S, D) and step of the episode (S,)."""
        d = self.decisions
        kept = self._by_block(share)[:, d.block]
        fixed = torch.stack([d.importance, d.block_importance, d.depth, d.channels.float()], -1).expand(
            len(share), -1, -1
        )
        time = (step / self.horizon)[:, None, None].expand(-1, d.count, 1)
        features = torch.cat([fixed, share[..., None], kept[..., None], time], -1)
        raw: Tensor = self.free + self.block[d.block] + self.pull * (2 * share - 1) + self.net(features).squeeze(-1)
        return raw - self._shift(raw.detach())[:, None]

    def value(self, share: Tensor, step: Tensor) -> Tensor:
        """Expected return of states: (S,)."""
        state = torch.cat([self._by_block(share), (step / self.horizon)[:, None]], -1)
        values: Tensor = self.critic(state).squeeze(-1)
        return values

    def _by_block(self, share: Tensor) -> Tensor:
        """Kept share of each block's decisions: (S, D) -> (S, blocks)."""
        sizes = torch.bincount(self.decisions.block)
        return torch.zeros(len(share), len(sizes)).index_add(1, self.decisions.block, share) / sizes

    def _shift(self, raw: Tensor) -> Tensor:
        """What to take off the logits (S, D) so that the expected cost of all pools together is their limit: (S,)."""
        cost, limit = self.decisions.cost, float(self.decisions.budget.pool_limit.sum())
        low, high = (raw.amin(1) - 30).double(), (raw.amax(1) + 30).double()
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            over = (torch.sigmoid(raw.double() - middle[:, None]) * cost).sum(1) > limit
            low, high = torch.where(over, middle, low), torch.where(over, high, middle)
        return ((low + high) / 2).float()


def _network(features: int) -> nn.Sequential:
    """One hidden layer; its output is 0 to begin with."""
    last = nn.Linear(HIDDEN, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(features, HIDDEN), nn.Tanh(), last)
