"""Bernoulli policy gradient (Gao et al., ACL 2025): keep probabilities learned from forward passes alone."""

import math
from typing import Any

import torch
from torch import Tensor

from policyprune.config.schema import PolicyGradient
from policyprune.pruning.budget.projection import project
from policyprune.pruning.budget.selection import select
from policyprune.pruning.optimizers.batches import Batches, DenseLosses
from policyprune.pruning.optimizers.estimator import Baseline, gradient
from policyprune.pruning.optimizers.problem import FORGETFUL, Found, Problem, Report, State


def search(problem: Problem, config: PolicyGradient, report: Report, state: State = FORGETFUL) -> Found:
    """Minimise the expected loss over the keep probabilities, then keep the most probable units that fit.

    A step draws K masks (for each sequence, or for the batch), takes K forward passes, and moves the probabilities
    against the estimated gradient and back into the budget. The same seed gives the same masks. Masks whose loss is NaN
    or infinite are skipped.
    """
    descent = Descent(problem, config)
    saved = state.load()
    if saved is not None:
        descent.load_state_dict(saved)
    while descent.steps < config.steps:
        report(descent.step())
        state.save(descent.state_dict)
    return Found(
        select(problem.space.joint(descent.s), descent.budget), descent.s, descent.forwards + descent.dense.forwards
    )


class Descent:
    """The keep probabilities `s` (n,) and all else that changes from step to step."""

    def __init__(self, problem: Problem, config: PolicyGradient) -> None:
        self._problem, self._config = problem, config
        self.s = problem.start.clone()
        device = self.s.device
        self.budget = problem.budget.to(device)
        relative = torch.tensor([1.0 if g.kind == "ffn" else config.attention_rate for g in problem.space.groups])
        self._relative = relative[problem.space.group_of].to(device)
        self._generator = torch.Generator(device).manual_seed(problem.seed)
        self._batches = Batches(problem, config.batch_size)
        self._baseline = Baseline(config)
        self.dense = DenseLosses(problem)
        self.steps, self.forwards = 0, 0

    def step(self) -> dict[str, Tensor | float]:
        """Take a step; what is told of it. Nothing here waits for a GPU."""
        config, s, rows = self._config, self.s, self._batches.draw()
        per_batch = config.mask_per == "batch"
        shape = (config.masks, 1 if per_batch else len(rows), self._problem.space.n)
        masks = (torch.rand(shape, generator=self._generator, device=s.device) < s).float()
        losses = torch.stack(self._problem.losses([(mask, rows) for mask in masks]))
        reference = self.dense.of(rows) if config.baseline == "residual" else None
        if per_batch:
            losses = losses.mean(1, keepdim=True)
            reference = None if reference is None else reference.mean(0, keepdim=True)
        advantages = self._baseline.advantages(losses, reference)
        samples = config.masks - 1 if config.divisor == "masks_minus_one" else config.masks
        estimate = gradient(masks.flatten(0, 1), advantages.flatten(), s, config.score, samples * shape[1])
        rate = config.learning_rate * _decay(config.schedule, self.steps / config.steps)
        self.steps, self.forwards = self.steps + 1, self.forwards + config.masks
        current = self.budget
        if config.progressive:
            current = current.relaxed(current.keep + (1 - current.keep) * (1 - self.steps / config.steps) ** 3)
        self.s = s = project(s - rate * self._relative * estimate, current, config.projection)
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
            "dense": self.dense.state_dict() if self._config.baseline == "residual" else None,
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
