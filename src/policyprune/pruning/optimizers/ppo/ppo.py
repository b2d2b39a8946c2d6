"""PPOM: the mask by proximal policy optimisation (Yao et al., CoNLL 2024; docs/ppom.md says what is ours)."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence

from policyprune.config.schema import PPO
from policyprune.pruning.optimizers.held_out_losses import Jury
from policyprune.pruning.optimizers.ppo.actor_critic import ActorCritic
from policyprune.pruning.optimizers.ppo.decisions import Decisions, make_decisions
from policyprune.pruning.optimizers.ppo.warm_starts import warm_starts
from policyprune.pruning.optimizers.problem import FORGETFUL, Found, Problem, Report, State

CONFIDENCE = 1.5  # initial logit of a decision that the warm start keeps, minus that of one it drops
TRUST = 3.0  # added to the initial logit of a gate, which stakes all that is below it


@dataclass
class Episodes:
    """E episodes, step by step: states, actions and logits (E, D), values, rewards and losses (E,)."""

    shares: list[Tensor] = field(default_factory=list)
    actions: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    rewards: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)


def search(problem: Problem, config: PPO, report: Report, state: State = FORGETFUL) -> Found:
    """Refine the best warm start; every mask that is tried meets the budget exactly.

    An episode starts from the incumbent mask and refines it `horizon` times; the reward of a step is how much it lowers
    the loss of a batch of calibration examples, by true forward passes. The mask returned has the lowest loss on all
    the held-out calibration examples among the warm start and the search's best. Masks whose loss is NaN or infinite
    bring no reward and are never chosen.
    """
    saved = state.load()
    refinement = Refinement(problem, config, saved)
    while refinement.iterations < config.iterations:
        report(refinement.iterate())
        state.save(refinement.state_dict)
    return refinement.found()


class Refinement:
    """The incumbent mask, the agent that refines it, and all else that changes from iteration to iteration."""

    def __init__(self, problem: Problem, config: PPO, saved: dict[str, Any] | None) -> None:
        self._config = config
        self._generator = torch.Generator().manual_seed(problem.seed)
        budget = problem.budget.to(torch.device("cpu"))
        self._jury = Jury(problem, config, self._generator)
        self._decisions = make_decisions(problem.metric, problem.space, budget, config.chunk)
        if saved is None:
            self._incumbent = self._jury.best(warm_starts(problem, budget, self._jury, config.stages))
        else:
            self._incumbent = saved["incumbent"]
        self._finalists = [self._incumbent]
        decisions = self._decisions
        start = (
            CONFIDENCE * (decisions.share(self._incumbent) - 0.5) + 0.3 * decisions.standing + TRUST * decisions.gate
        )
        with torch.random.fork_rng(devices=[]):  # the networks start from the seed, whatever was drawn before
            torch.manual_seed(problem.seed)
            self._agent = ActorCritic(self._decisions, start, config.horizon)
        self._optimizer = torch.optim.Adam(self._agent.parameters(), lr=config.learning_rate)
        self.iterations = 0
        if saved is not None:
            self._finalists, self.iterations = saved["finalists"], saved["iterations"]
            self._jury.forwards = saved["forwards"]
            self._agent.load_state_dict(saved["agent"])
            self._optimizer.load_state_dict(saved["optimizer"])
            self._generator.set_state(saved["generator"])

    def state_dict(self) -> dict[str, Any]:
        """Everything that the iterations to come depend on."""
        return {
            "incumbent": self._incumbent,
            "finalists": self._finalists,
            "iterations": self.iterations,
            "forwards": self._jury.forwards,
            "agent": self._agent.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
        }

    def iterate(self) -> dict[str, Tensor | float]:
        """Play episodes, learn from them, and take the best mask seen if it is better; what is told of it."""
        config, jury = self._config, self._jury
        rows = jury.draw()
        episodes, base = _play(self._agent, self._decisions, self._incumbent, rows, jury, config, self._generator)
        advantages, returns = generalised_advantages(
            torch.stack(episodes.rewards), torch.stack(episodes.values), config.discount, config.gae_lambda
        )
        entropy_bonus = config.entropy * (1 - self.iterations / config.iterations)
        with torch.enable_grad():
            update = _update(self._agent, self._optimizer, episodes, advantages, returns, entropy_bonus, config)
        losses = torch.stack(episodes.losses)
        valid = losses.isfinite()
        challenger = episodes.masks[int(losses.argmin())]
        if float(losses.min()) < base and jury.better(challenger, self._incumbent):
            self._incumbent = challenger
            self._finalists.append(challenger)
        self.iterations += 1
        return {
            "step": self.iterations,
            "forwards": jury.forwards,
            "loss": float(losses[valid].mean()),
            "best_loss": float(losses.min()),
            "skipped": int((~valid).sum()),
            "incumbent_loss": base,
            "keep": float(self._incumbent.double().mean()),
            "return": float(torch.stack(episodes.rewards).sum(0).mean()),
            **update,
        }

    def found(self) -> Found:
        """The best of the finalists, of which the first is the warm start, on all held-out examples."""
        decisions = self._decisions
        final_share = decisions.share(self._incumbent)[None]
        with torch.no_grad():
            probabilities = torch.sigmoid(self._agent.logits(final_share, torch.zeros(1)))[0]
        mode = decisions.mask((probabilities > 0.5).float(), probabilities)
        best = self._jury.best([self._finalists[0], mode, *self._finalists[-self._config.candidates :]])
        return Found(best, probabilities[decisions.of].clone(), self._jury.forwards)


def _play(
    agent: ActorCritic,
    decisions: Decisions,
    incumbent: Tensor,
    rows: list[Tensor],
    jury: Jury,
    config: PPO,
    generator: torch.Generator,
) -> tuple[Episodes, float]:
    """Play the episodes from the incumbent mask; also its loss on the same examples, to which rewards are relative."""
    episodes = Episodes()
    base = jury.loss(incumbent, rows)
    masks = [incumbent] * config.episodes
    before = torch.full((config.episodes,), base)
    for step in range(config.horizon):
        share = torch.stack([decisions.share(mask) for mask in masks])
        now = torch.full((config.episodes,), float(step))
        with torch.no_grad():
            logits = agent.logits(share, now)
            values = agent.value(share, now)
        probabilities = torch.sigmoid(logits)
        actions = (torch.rand(probabilities.shape, generator=generator) < probabilities).float()
        masks = [decisions.mask(action, own) for action, own in zip(actions, probabilities, strict=True)]
        losses = torch.tensor([jury.loss(mask, rows) for mask in masks])
        episodes.shares.append(share)
        episodes.actions.append(actions)
        episodes.logits.append(logits)
        episodes.values.append(values)
        gain = before - losses
        episodes.rewards.append(torch.where(gain.isfinite(), gain, 0))
        episodes.losses.append(losses)
        episodes.masks += masks
        before = torch.where(losses.isfinite(), losses, before)
    return episodes, base


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


def _update(
    agent: ActorCritic,
    optimizer: torch.optim.Optimizer,
    episodes: Episodes,
    advantages: Tensor,
    returns: Tensor,
    entropy_bonus: float,
    config: PPO,
) -> dict[str, float]:
    """Several epochs over the episodes; stops when the policy has moved by `kl_stop` per decision."""
    share, actions, old = (torch.cat(part) for part in (episodes.shares, episodes.actions, episodes.logits))
    step = torch.arange(float(config.horizon)).repeat_interleave(config.episodes)
    advantage = advantages.flatten()
    advantage = (advantage - advantage.mean()) / advantage.std().clamp(min=1e-8)
    before = Bernoulli(logits=old)
    scale = returns.std().clamp(min=1e-6)
    kl, clipped, epochs, entropy = 0.0, 0.0, 0, 0.0
    for _ in range(config.epochs):
        policy = Bernoulli(logits=agent.logits(share, step))
        kl = float(kl_divergence(before, policy).detach().mean())
        if kl > config.kl_stop:
            break
        ratio = (policy.log_prob(actions) - before.log_prob(actions)).exp()  # of each decision
        gain = clipped_surrogate(ratio, advantage[:, None], config.clip).sum(1).mean()
        spread = policy.entropy().sum(1).mean()
        miss = ((agent.value(share, step) - returns.flatten()) / scale).square().mean()
        optimizer.zero_grad()
        (-gain - entropy_bonus * spread + 0.5 * miss).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        clipped, entropy, epochs = (
            float(((ratio - 1).abs() > config.clip).float().mean()),
            float(spread.detach()),
            epochs + 1,
        )
    return {"entropy": entropy, "kl": kl, "clip_fraction": clipped, "epochs": epochs}
