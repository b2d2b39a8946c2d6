"""Policy gradient over widths: what each block draws its level from is learned from losses of whole allocations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from policyprune.config.fields import named, number
from policyprune.config.schema import Config
from policyprune.errors import UsageError
from policyprune.pruning.optimizers.levels.level_search import LevelSearch, Losses
from policyprune.pruning.optimizers.levels.levels import Allocation
from policyprune.pruning.optimizers.problem import FORGETFUL, Found, Problem, Report, State

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from policyprune.pruning.optimizers.levels.level_policy import LevelPolicy


@dataclass(kw_only=True)
class LevelPolicyGradient(LevelSearch):
    """Policy gradient over widths of blocks, from the losses of single blocks on."""

    name: str = named("level_policy_gradient")
    widths: list[float] = number(
        [0.75, 0.5, 0.25], above=0, below=1, help="shares of a block's units at which its loss is measured; []: nowhere"
    )
    sequences: int = number(16, at_least=1, help="calibration sequences of the last step, and of single blocks")
    first_sequences: int = number(4, at_least=1, help="of the first step; each step has fresh ones, and more of them")
    final_sequences: int = number(64, at_least=1, help="on which the start and what was found are compared")
    steps: int = number(40, at_least=1, help="after the measurement of single blocks")
    masks: int = number(8, at_least=2, help="K, allocations that are drawn in a step")
    spread: float = number(3.0, above=1, help="levels that a block is drawn from at the start, by the mean entropy")
    learning_rate: float = number(3.0, above=0, help="at the start; it falls to 0")
    candidates: int = number(2, at_least=0, help="last steps whose best allocation is compared in the end")

    def check(self, config: Config) -> None:
        """The number of sequences grows."""
        super().check(config)
        if self.first_sequences > self.sequences:
            raise UsageError(
                f"optimizer.first_sequences: {self.first_sequences} is more than optimizer.sequences={self.sequences}, "
                "to which they grow; use fewer"
            )

    def search(self, problem: Problem, report: Report, state: State = FORGETFUL) -> Found:
        """Measure single blocks, begin with the knapsack's allocation, and learn the policy that it stands for.

        A step draws K allocations, repairs them to the budget, and measures them on the same fresh sequences. In the
        end the start, the likeliest allocation and the best ones of the last steps are compared on fresh sequences.
        """
        import torch

        from policyprune.pruning.optimizers.levels.level_policy import LevelPolicy

        losses = Losses(problem, self.levels, report, state)
        widths = losses.widths
        start = Allocation(losses, losses.draw(self.sequences)).start(self.widths)
        policy = LevelPolicy.of(widths)
        theta = policy.start([curve.losses() for curve in widths.curves], self.spread).requires_grad_()
        optimizer = self.optimizer([theta])
        finalists = [start]
        for step in range(self.steps):
            log_pi = policy.log_probabilities(theta.detach())
            drawn = policy.draw(log_pi, self.masks, losses.generator)
            tried = [widths.at(policy.repaired(levels, log_pi)) for levels in drawn]
            values = losses.of(tried, losses.draw(self._growing(step)))
            optimizer.param_groups[0]["lr"] = self.learning_rate * (1 - step / self.steps)
            with torch.enable_grad():
                learned = self.learn(policy, theta, optimizer, drawn, advantages(values))
            if step >= self.steps - self.candidates:
                finalists.append(widths.filled(tried[values.index(min(values))]))
            finite = [value for value in values if math.isfinite(value)]
            losses.tell(
                {
                    "loss": sum(finite) / len(finite) if finite else math.nan,
                    "best_loss": min(values),
                    "skipped": float(len(values) - len(finite)),
                    "keep": sum(losses.keep(counts) for counts in tried) / len(tried),
                    "levels": float(policy.entropy(log_pi).exp()),
                    **learned,
                }
            )
        finalists.insert(1, policy.likeliest(widths, policy.log_probabilities(theta.detach())))
        values = losses.over(finalists, losses.draw(self.final_sequences).split(self.sequences))
        return losses.found(finalists[values.index(min(values))])

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """What moves theta."""
        import torch

        return torch.optim.SGD(parameters)

    def learn(
        self, policy: LevelPolicy, theta: Tensor, optimizer: torch.optim.Optimizer, drawn: Tensor, advantage: Tensor
    ) -> dict[str, float]:
        """Move theta against the gradient of the expected loss, by levels (K, B) and advantages (K,)."""
        optimizer.zero_grad()
        surrogate(policy, theta, drawn, advantage).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return {}

    def _growing(self, step: int) -> int:
        """How many sequences a step looks at: a constant factor more in each."""
        share = step / max(self.steps - 1, 1)
        growth: float = (self.sequences / self.first_sequences) ** share
        return round(self.first_sequences * growth)


def surrogate(policy: LevelPolicy, theta: Tensor, drawn: Tensor, advantage: Tensor) -> Tensor:
    """A scalar whose gradient is that of the expected loss: mean over K samples of advantage times log pi."""
    return (advantage * policy.log_probabilities(theta).gather(1, drawn.T).sum(0)).mean()


def advantages(values: list[float]) -> Tensor:
    """Losses minus the mean of the others, over their deviation: (K,); 0 for a loss that is no number."""
    import torch

    from policyprune.pruning.optimizers.estimator import Baseline

    losses = torch.tensor(values, dtype=torch.float64)[:, None]
    minus = Baseline("leave_one_out", 1, "after_use").advantages(losses, None).flatten()
    return minus / minus.square().mean().sqrt().clamp(min=1e-12)
