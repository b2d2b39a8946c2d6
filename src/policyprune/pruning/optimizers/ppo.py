"""PPOM: the mask by proximal policy optimisation (Yao et al., CoNLL 2024; docs/ppom.md says what is ours)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence

from policyprune.config.schema import PPO
from policyprune.pruning.optimizers.actor_critic import ActorCritic
from policyprune.pruning.optimizers.decisions import Decisions, make_decisions
from policyprune.pruning.optimizers.jury import Jury
from policyprune.pruning.optimizers.problem import Found, Problem, Report
from policyprune.pruning.optimizers.warm_starts import warm_starts

CONFIDENCE = 1.5  # initial logit of a decision that the warm start keeps, minus that of one it drops


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


def search(problem: Problem, config: PPO, report: Report) -> Found:
    """Refine the best warm start; every mask that is tried meets the budget exactly.

    An episode starts from the incumbent mask and refines it `horizon` times; the reward of a step is how much it lowers
    the loss of a batch of calibration examples, by true forward passes. The mask returned has the lowest loss on all
    the held-out calibration examples among the warm start and the search's best.
    """
    generator = torch.Generator().manual_seed(problem.seed)
    budget = problem.budget.to(torch.device("cpu"))
    jury = Jury(problem, config, generator)
    starts = warm_starts(problem, budget)
    incumbent, warm_loss = jury.best(starts)
    finalists = [incumbent]
    decisions = make_decisions(problem.metric, problem.space, budget, config.chunk)
    start = CONFIDENCE * (decisions.share(incumbent) - 0.5) + 0.3 * decisions.standing
    with torch.random.fork_rng(devices=[]):  # the networks start from the seed, whatever was drawn before
        torch.manual_seed(problem.seed)
        agent = ActorCritic(decisions, start, config.horizon)
    optimizer = torch.optim.Adam(agent.parameters(), lr=config.learning_rate)
    for iteration in range(config.iterations):
        rows = jury.draw()
        episodes, base = _play(agent, decisions, incumbent, rows, jury, config, generator)
        advantages, returns = generalised_advantages(
            torch.stack(episodes.rewards), torch.stack(episodes.values), config.discount, config.gae_lambda
        )
        entropy_bonus = config.entropy * (1 - iteration / config.iterations)
        with torch.enable_grad():
            update = _update(agent, optimizer, episodes, advantages, returns, entropy_bonus, config)
        losses = torch.stack(episodes.losses)
        challenger = episodes.masks[int(losses.argmin())]
        if float(losses.min()) < base and jury.better(challenger, incumbent):
            incumbent = challenger
            finalists.append(challenger)
        report(
            {
                "step": iteration + 1,
                "forwards": jury.forwards,
                "loss": float(losses.mean()),
                "best_loss": float(losses.min()),
                "incumbent_loss": base,
                "keep": float(incumbent.double().mean()),
                "return": float(torch.stack(episodes.rewards).sum(0).mean()),
                **update,
            }
        )
    final_share = decisions.share(incumbent)[None]
    with torch.no_grad():
        probabilities = torch.sigmoid(agent.logits(final_share, torch.zeros(1)))[0]
    mode = decisions.mask((probabilities > 0.5).float(), probabilities)
    best, loss = jury.best([finalists[0], mode, *finalists[-config.candidates :]])
    assert loss <= warm_loss
    return Found(best, probabilities[decisions.of].clone(), jury.forwards)


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
        episodes.rewards.append(before - losses)
        episodes.losses.append(losses)
        episodes.masks += masks
        before = losses
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
        kl = float(kl_divergence(before, policy).mean())
        if kl > config.kl_stop:
            break
        ratio = (policy.log_prob(actions) - before.log_prob(actions)).exp()  # of each decision
        gain = clipped_surrogate(ratio, advantage[:, None], config.clip).sum(1).mean()
        spread = policy.entropy().sum(1).mean()
        miss = ((agent.value(share, step) - returns.flatten()) / scale).square().mean()
        optimizer.zero_grad()
        (-gain - entropy_bonus * spread + 0.5 * miss).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        clipped, entropy, epochs = float(((ratio - 1).abs() > config.clip).float().mean()), float(spread), epochs + 1
    return {"entropy": entropy, "kl": kl, "clip_fraction": clipped, "epochs": epochs}
