"""Bernoulli policy gradient (Gao et al., ACL 2025): keep probabilities learned from forward passes alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from policyprune.config.fields import choice, named, number, setting
from policyprune.config.schema import Config, Stepwise
from policyprune.errors import UsageError
from policyprune.processes import processes
from policyprune.pruning.optimizers.problem import FORGETFUL, Found, Problem, Report, State

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(kw_only=True)
class PolicyGradient(Stepwise):
    """Bernoulli policy gradient; every field is an independent choice (docs/policy-gradient.md)."""

    name: str = named("policy_gradient")
    steps: int = number(80, at_least=1, help="steps of the search")
    masks: int = number(2, at_least=1, help="K, forward passes per step")
    mask_per: str = choice("sequence", choices=("sequence", "batch"), help="what is given a mask of its own")
    score: str = choice(
        "released",
        choices=("textbook", "released", "natural"),
        help="what mask - s is divided by: s(1-s), its root as in the authors' code, or 1",
    )
    baseline: str = choice(
        "leave_one_out",
        choices=("none", "moving_average", "leave_one_out", "residual"),
        help="what is taken off a loss; residual: the dense model's and the mean of the others",
    )
    window: int = number(5, at_least=1, help="T, steps of the moving average")
    window_update: str = choice(
        "after_use", choices=("after_use", "before_use"), help="when a step's losses enter the moving average"
    )
    divisor: str = choice("masks", choices=("masks", "masks_minus_one"), help="of the sum over masks: K or K - 1")
    attention_rate: float = number(10.0, above=0, help="learning rate of attention units, relative to that of channels")
    learning_rate: float = number(0.03, above=0, help="at the start")
    schedule: str = choice("cosine", choices=("constant", "linear", "cosine"), help="how the learning rate falls")
    projection: str = choice(
        "cap", choices=("cap", "equality"), help="keep at most the budget, or spend all of it, after each step"
    )
    progressive: bool = setting(False, help="shrink the budget from 1 to `budget.keep` during the search")
    sliced: bool = setting(
        True, help="with mask_per=batch: leave out what a mask prunes instead of multiplying it by zero"
    )

    shares_masks: ClassVar[bool] = True

    def check(self, config: Config) -> None:
        """Some baselines and divisors need two masks, and each process one."""
        super().check(config)
        if self.baseline == "leave_one_out" and self.masks < 2:
            raise UsageError("optimizer.masks: 1 leaves nothing to leave out, baseline=leave_one_out needs 2 or more")
        if self.divisor == "masks_minus_one" and self.masks < 2:
            raise UsageError("optimizer.masks: 1 cannot be divided by K - 1, use 2 or more or divisor=masks")
        samples = self.masks * (1 if self.mask_per == "batch" else self.batch_size)
        if self.baseline == "residual" and samples < 2:
            raise UsageError("optimizer.masks: 1 leaves nothing to leave out, baseline=residual needs 2 or more")
        if self.masks < processes():
            raise UsageError(
                f"optimizer.masks: {self.masks} masks leave some of {processes()} processes without work, use a "
                f"multiple of {processes()}"
            )

    def search(self, problem: Problem, report: Report, state: State = FORGETFUL) -> Found:
        """Minimise the expected loss over the keep probabilities, then keep the most probable units that fit.

        A step draws K masks (for each sequence, or for the batch), takes K forward passes, and moves the probabilities
        against the estimated gradient and back into the budget. The same seed gives the same masks. Masks whose loss is
        NaN or infinite are skipped.
        """
        from policyprune.pruning.budget.selection import select

        descent = Descent(problem, self)
        saved = state.load()
        if saved is not None:
            descent.load_state_dict(saved)
        while descent.steps < self.steps:
            report(descent.step())
            state.save(descent.state_dict)
        mask = select(problem.space.joint(descent.s), descent.budget)
        return Found(mask, descent.s, descent.forwards + descent.dense.forwards)


class Descent:
    """The keep probabilities `s` (n,) and all else that changes from step to step."""

    def __init__(self, problem: Problem, options: PolicyGradient) -> None:
        import torch

        from policyprune.pruning.optimizers.batches import Batches, DenseLosses
        from policyprune.pruning.optimizers.estimator import Baseline

        self._problem, self._options = problem, options
        self.s = problem.start.clone()
        device = self.s.device
        self.budget = problem.budget.to(device)
        relative = torch.tensor([1.0 if g.kind == "ffn" else options.attention_rate for g in problem.space.groups])
        self._relative = relative[problem.space.group_of].to(device)
        self._generator = torch.Generator(device).manual_seed(problem.seed)
        self._batches = Batches(problem, options.batch_size)
        self._baseline = Baseline(options.baseline, options.window, options.window_update)
        self.dense = DenseLosses(problem)
        self.steps, self.forwards = 0, 0

    def step(self) -> dict[str, Tensor | float]:
        """Take a step; the curve's row of it. Nothing here waits for a GPU."""
        import torch

        from policyprune.pruning.budget.projection import project
        from policyprune.pruning.optimizers.estimator import gradient

        options, s, rows = self._options, self.s, self._batches.draw()
        per_batch = options.mask_per == "batch"
        shape = (options.masks, 1 if per_batch else len(rows), self._problem.space.n)
        masks = (torch.rand(shape, generator=self._generator, device=s.device) < s).float()
        losses = torch.stack(self._problem.losses([(mask, rows) for mask in masks]))
        reference = self.dense.of(rows) if options.baseline == "residual" else None
        if per_batch:
            losses = losses.mean(1, keepdim=True)
            reference = None if reference is None else reference.mean(0, keepdim=True)
        advantages = self._baseline.advantages(losses, reference)
        samples = options.masks - 1 if options.divisor == "masks_minus_one" else options.masks
        estimate = gradient(masks.flatten(0, 1), advantages.flatten(), s, options.score, samples * shape[1])
        rate = options.learning_rate * _decay(options.schedule, self.steps / options.steps)
        self.steps, self.forwards = self.steps + 1, self.forwards + options.masks
        current = self.budget
        if options.progressive:
            current = current.relaxed(current.keep + (1 - current.keep) * (1 - self.steps / options.steps) ** 3)
        self.s = s = project(s - rate * self._relative * estimate, current, options.projection)
        valid = (losses if reference is None else losses - reference).isfinite()
        count = valid.sum()
        mean = torch.where(valid, losses, 0).sum() / count  # NaN where no loss is a number
        deviation = (torch.where(valid, losses - mean, 0).square().sum() / (count - 1).clamp(min=1)).sqrt()
        return {
            "step": self.steps,
            "forwards": self.forwards + self.dense.forwards,
            "loss": mean,
            "loss_deviation": deviation,
            "skipped": valid.numel() - count,
            "keep": s.mean(),
            "gradient_norm": estimate.norm(),
            "undecided": ((s > 0.05) & (s < 0.95)).float().mean(),
            "learning_rate": rate,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that the steps to come depend on."""
        return {
            "s": self.s,
            "generator": self._generator.get_state(),
            "batches": self._batches.state_dict(),
            "average": self._baseline.average,
            "dense": self.dense.state_dict() if self._options.baseline == "residual" else None,
            "steps": self.steps,
            "forwards": self.forwards,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go back to where `state_dict` was taken."""
        device = self.s.device
        self.s = saved["s"].to(device)
        self._generator.set_state(saved["generator"])
        self._batches.load_state_dict(saved["batches"])
        self._baseline.average = None if saved["average"] is None else saved["average"].to(device)
        if saved["dense"] is not None:
            self.dense.load_state_dict(saved["dense"])
        self.steps, self.forwards = saved["steps"], saved["forwards"]


def _decay(schedule: str, progress: float) -> float:
    """Factor of the learning rate at `progress` in [0, 1)."""
    if schedule == "constant":
        return 1.0
    return 1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
