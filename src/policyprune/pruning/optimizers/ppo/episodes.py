"""Episodes of PPOM: playing them, advantages, and learning from them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence

from policyprune.pruning.optimizers.ppo.actor_critic import ActorCritic
from policyprune.pruning.optimizers.ppo.held_out_losses import HeldOutLosses


@dataclass
class Episodes:
    """E episodes, step by step: states, actions and logits (E, D), values, rewards and losses (E,).

    `base` is the loss of the mask that they start from, on the same examples.
    """

    base: float
    shares: list[Tensor] = field(default_factory=list)
    actions: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    rewards: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)


def play(
    agent: ActorCritic, incumbent: Tensor, count: int, losses_of: HeldOutLosses, generator: torch.Generator
) -> Episodes:
    """Play `count` episodes from the incumbent mask (n,); rewards are how much each step lowers the loss."""
    rows, decisions = losses_of.draw(), agent.decisions
    episodes = Episodes(losses_of.loss(incumbent, rows))
    masks = [incumbent] * count
    before = torch.full((count,), episodes.base)
    for step in range(agent.horizon):
        share = torch.stack([decisions.share(mask) for mask in masks])
        time = torch.full((count,), float(step))
        with torch.no_grad():
            logits = agent.logits(share, time)
            values = agent.value(share, time)
        probabilities = torch.sigmoid(logits)
        actions = (torch.rand(probabilities.shape, generator=generator) < probabilities).float()
        masks = [decisions.mask(*pair) for pair in zip(actions, probabilities, strict=True)]
        losses = torch.tensor([losses_of.loss(mask, rows) for mask in masks])
        episodes.shares.append(share)
        episodes.actions.append(actions)
        episodes.logits.append(logits)
        episodes.values.append(values)
        gain = before - losses
        episodes.rewards.append(torch.where(gain.isfinite(), gain, 0))
        episodes.losses.append(losses)
        episodes.masks += masks
        before = torch.where(losses.isfinite(), losses, before)
    return episodes


def generalised_advantages(
    rewards: Tensor, values: Tensor, discount: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns (H, E) from rewards and values (H, E); an episode ends after its last step."""
    advantages = torch.zeros_like(rewards)
    following, carried = torch.zeros_like(rewards[0]), torch.zeros_like(rewards[0])
    for step in reversed(range(len(rewards))):
        error = rewards[step] + discount * following - values[step]
        carried = error + discount * gae_lambda * carried
        advantages[step], following = carried, values[step]
    return advantages, advantages + values


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """PPO's objective: min(ratio * A, clip(ratio, 1 - clip, 1 + clip) * A), elementwise."""
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


@dataclass(frozen=True, kw_only=True)
class Update:
    """Several epochs over the episodes; they stop when the policy has moved by `kl_stop` per decision."""

    epochs: int
    clip: float
    kl_stop: float
    entropy_bonus: float

    def __call__(
        self,
        agent: ActorCritic,
        optimizer: torch.optim.Optimizer,
        episodes: Episodes,
        advantages: Tensor,
        returns: Tensor,
    ) -> dict[str, float]:
        """Learn from advantages and returns (H, E); entropy, KL, clipped share and epochs for the curve."""
        share, actions, old = (torch.cat(part) for part in (episodes.shares, episodes.actions, episodes.logits))
        horizon, count = advantages.shape
        step = torch.arange(float(horizon)).repeat_interleave(count)
        advantage = advantages.flatten()
        advantage = (advantage - advantage.mean()) / advantage.std().clamp(min=1e-8)
        before = Bernoulli(logits=old)
        scale = returns.std().clamp(min=1e-6)
        kl, clipped, epochs, entropy = 0.0, 0.0, 0, 0.0
        for _ in range(self.epochs):
            policy = Bernoulli(logits=agent.logits(share, step))
            kl = float(kl_divergence(before, policy).detach().mean())
            if kl > self.kl_stop:
                break
            ratio = (policy.log_prob(actions) - before.log_prob(actions)).exp()  # of each decision
            gain = clipped_surrogate(ratio, advantage[:, None], self.clip).sum(1).mean()
            spread = policy.entropy().sum(1).mean()
            miss = ((agent.value(share, step) - returns.flatten()) / scale).square().mean()
            optimizer.zero_grad()
            (-gain - self.entropy_bonus * spread + 0.5 * miss).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            clipped = float(((ratio - 1).abs() > self.clip).float().mean())
            entropy, epochs = float(spread.detach()), epochs + 1
        return {"entropy": entropy, "kl": kl, "clip_fraction": clipped, "epochs": epochs}
