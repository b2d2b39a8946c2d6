"""PPO over widths: the policy of the policy gradient, with several steps on the clipped surrogate for each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from policyprune.config.fields import named, number
from policyprune.pruning.optimizers.levels.level_policy_gradient import LevelPolicyGradient

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from policyprune.pruning.optimizers.levels.level_policy import LevelPolicy


@dataclass(kw_only=True)
class LevelPPO(LevelPolicyGradient):
    """Proximal policy optimisation over widths of blocks, from the losses of single blocks on.

    An episode is one allocation; its advantage is its loss against those of the others.
    """

    name: str = named("level_ppo")
    learning_rate: float = number(0.1, above=0, help="of Adam, at the start; it falls to 0")
    epochs: int = number(4, at_least=1, help="over the allocations of a step, at most")
    clip: float = number(0.2, above=0, below=1, help="how far a probability ratio may move the objective from 1")
    kl_stop: float = number(0.02, above=0, help="how far the policy may move in a step, KL per block")
    entropy: float = number(0.003, at_least=0, help="bonus")

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """What moves theta."""
        import torch

        return torch.optim.Adam(parameters)

    def learn(
        self, policy: LevelPolicy, theta: Tensor, optimizer: torch.optim.Optimizer, drawn: Tensor, advantage: Tensor
    ) -> dict[str, float]:
        """Several epochs over levels (K, B) and advantages (K,); they stop when the policy has moved by `kl_stop`."""
        from policyprune.pruning.optimizers.ppo.episodes import clipped_surrogate

        before = policy.log_probabilities(theta.detach())
        kl, clipped, epochs = 0.0, 0.0, 0
        for _ in range(self.epochs):
            log_pi = policy.log_probabilities(theta)
            kl = float(policy.divergence(before, log_pi.detach()))
            if kl > self.kl_stop:
                break
            ratio = (log_pi - before).masked_fill(~policy.open, 0).gather(1, drawn.T).exp()  # of each decision
            gain = clipped_surrogate(ratio, -advantage, self.clip).sum(0).mean()
            optimizer.zero_grad()
            (-gain - self.entropy * policy.entropy(log_pi)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            clipped, epochs = float(((ratio - 1).abs() > self.clip).double().mean()), epochs + 1
        return {"kl": kl, "clip_fraction": clipped, "epochs": epochs}
