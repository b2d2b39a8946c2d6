"""PPOM: the mask by proximal policy optimisation (Yao et al., CoNLL 2024; docs/ppom.md says what is ours)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from policyprune.config.fields import named, number, setting
from policyprune.config.schema import Optimizer
from policyprune.pruning.optimizers.problem import FORGETFUL, Found, Problem, Report, State

if TYPE_CHECKING:
    from torch import Tensor

CONFIDENCE = 1.5  # initial logit of a decision that the warm start keeps, minus that of one it drops
TRUST = 3.0  # added to the initial logit of a gate, which stakes all that is below it


@dataclass(kw_only=True)
class PPO(Optimizer):
    """Mask search by proximal policy optimisation; docs/ppom.md says what is the paper's and what is ours."""

    name: str = named("ppo")
    stages: int = number(12, at_least=0, help="of the warm start that is pruned step by step; 0: without it")
    iterations: int = number(30, at_least=1, help="steps of the search")
    episodes: int = number(16, at_least=2, help="per iteration")
    horizon: int = number(2, at_least=1, help="refinements of the mask in an episode")
    examples: int = number(64, at_least=1, help="calibration examples for each reward")
    held_out: float = number(0.25, above=0, below=1, help="share of the calibration examples that masks are judged by")
    chunk: int = number(64, at_least=1, help="neighbouring channels, by importance, that are decided together")
    epochs: int = number(4, at_least=1, help="over the episodes of an iteration, at most")
    clip: float = number(0.2, above=0, below=1, help="how far a probability ratio may move the objective from 1")
    gae_lambda: float = number(0.95, at_least=0, at_most=1, help="of the generalised advantages")
    discount: float = number(1.0, above=0, at_most=1, help="of later rewards")
    entropy: float = number(0.003, at_least=0, help="bonus at the start, annealed to 0")
    kl_stop: float = number(0.02, above=0, help="how far the policy may move in an iteration, KL per decision")
    learning_rate: float = number(0.03, above=0, help="of Adam")
    sliced: bool = setting(True, help="leave out what a mask prunes, which is faster the more is pruned")
    candidates: int = number(
        8, at_least=1, help="masks of the search that are judged in the end, besides the policy's mode"
    )

    shares_masks: ClassVar[bool] = True
    back_propagates: ClassVar[bool] = True

    @property
    def length(self) -> int | None:
        """Number of iterations."""
        return self.iterations

    def search(self, problem: Problem, report: Report, state: State = FORGETFUL) -> Found:
        """Refine the best warm start; every mask that is tried meets the budget exactly.

        An episode starts from the incumbent mask and refines it `horizon` times; the reward of a step is how much it
        lowers the loss of a batch of calibration examples, by true forward passes. The best mask that was found is
        returned where it is better than the best warm start on the examples held out, by more than one standard error
        and after the run's tuning; else that warm start is. Masks whose loss is NaN or infinite bring no reward and
        are never chosen.
        """
        saved = state.load()
        refinement = Refinement(problem, self, saved)
        while refinement.iterations < self.iterations:
            report(refinement.iterate())
            state.save(refinement.state_dict)
        return refinement.found()


class Refinement:
    """The incumbent mask, the agent that refines it, and all else that changes from iteration to iteration."""

    def __init__(self, problem: Problem, options: PPO, saved: dict[str, Any] | None) -> None:
        import torch

        from policyprune.pruning.optimizers.ppo.actor_critic import ActorCritic
        from policyprune.pruning.optimizers.ppo.choice import Starts
        from policyprune.pruning.optimizers.ppo.decisions import make_decisions
        from policyprune.pruning.optimizers.ppo.held_out_losses import HeldOutLosses, warm_starts

        self._options = options
        self._generator = torch.Generator().manual_seed(problem.seed)
        budget = problem.budget.to(torch.device("cpu"))
        self._losses = HeldOutLosses(problem, options.held_out, options.examples, self._generator)
        self._decisions = decisions = make_decisions(problem.importance, problem.space, budget, options.chunk)
        if saved is None:
            self._starts = Starts.of(warm_starts(problem, budget, self._losses, options.stages), self._losses)
            self._incumbent = self._starts.masks[self._starts.best]
        else:
            self._starts = Starts(saved["starts"], saved["judged"])
            self._incumbent = saved["incumbent"]
        self._finalists: list[Tensor] = []
        share = decisions.share(self._incumbent)
        start = CONFIDENCE * (share - 0.5) + 0.3 * decisions.block_importance + TRUST * decisions.gate
        with torch.random.fork_rng(devices=[]):  # the networks start from the seed, whatever was drawn before
            torch.manual_seed(problem.seed)
            self._agent = ActorCritic(decisions, start, options.horizon)
        self._optimizer = torch.optim.Adam(self._agent.parameters(), lr=options.learning_rate)
        self.iterations = 0
        if saved is not None:
            self._finalists, self.iterations = saved["finalists"], saved["iterations"]
            self._losses.forwards = saved["forwards"]
            self._agent.load_state_dict(saved["agent"])
            self._optimizer.load_state_dict(saved["optimizer"])
            self._generator.set_state(saved["generator"])

    def state_dict(self) -> dict[str, Any]:
        """Everything that the iterations to come depend on."""
        return {
            "starts": self._starts.masks,
            "judged": self._starts.judged,
            "incumbent": self._incumbent,
            "finalists": self._finalists,
            "iterations": self.iterations,
            "forwards": self._losses.forwards,
            "agent": self._agent.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
        }

    def iterate(self) -> dict[str, Tensor | float]:
        """Play episodes, learn from them, and take the best mask seen if it is better; the curve's row of it."""
        import torch

        from policyprune.pruning.optimizers.ppo.episodes import Update, generalised_advantages, play

        options = self._options
        episodes = play(self._agent, self._incumbent, options.episodes, self._losses, self._generator)
        advantages, returns = generalised_advantages(
            torch.stack(episodes.rewards), torch.stack(episodes.values), options.discount, options.gae_lambda
        )
        update = Update(
            epochs=options.epochs,
            clip=options.clip,
            kl_stop=options.kl_stop,
            entropy_bonus=options.entropy * (1 - self.iterations / options.iterations),
        )
        with torch.enable_grad():
            learned = update(self._agent, self._optimizer, episodes, advantages, returns)
        losses = torch.stack(episodes.losses)
        valid = losses.isfinite()
        challenger = episodes.masks[int(losses.argmin())]
        if float(losses.min()) < episodes.base and self._losses.better(challenger, self._incumbent):
            self._incumbent = challenger
            self._finalists.append(challenger)
        self.iterations += 1
        return {
            "step": self.iterations,
            "forwards": self._losses.forwards,
            "loss": float(losses[valid].mean()),
            "best_loss": float(losses.min()),
            "skipped": int((~valid).sum()),
            "incumbent_loss": episodes.base,
            "keep": float(self._incumbent.double().mean()),
            "return": float(torch.stack(episodes.rewards).sum(0).mean()),
            **learned,
        }

    def found(self) -> Found:
        """The best of the masks that were found and of the warm starts, on the held-out examples."""
        import torch

        from policyprune.pruning.optimizers.ppo.choice import choose

        decisions = self._decisions
        final_share = decisions.share(self._incumbent)[None]
        with torch.no_grad():
            probabilities = torch.sigmoid(self._agent.logits(final_share, torch.zeros(1)))[0]
        mode = decisions.mask((probabilities > 0.5).float(), probabilities)
        finalists = [mode, *self._finalists[-self._options.candidates :]]
        best, choice = choose(self._starts, finalists, self._losses)
        return Found(best, probabilities[decisions.of].clone(), self._losses.forwards, choice=choice)
