"""Bernoulli policy gradient (Gao et al., ACL 2025): keep probabilities learned from forward passes alone."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from policyprune.config.schema import PolicyGradient
from policyprune.pruning.optimizers.estimator import Baseline, gradient
from policyprune.pruning.optimizers.problem import Found, Problem, Report
from policyprune.pruning.projection import project
from policyprune.pruning.selection import select


def search(problem: Problem, config: PolicyGradient, report: Report) -> Found:
    """Minimise the expected loss over the keep probabilities, then keep the most probable units that fit.

    A step draws K masks (for each sequence, or for the batch), takes K forward passes, and moves the probabilities
    against the estimated gradient and back into the budget. The same seed gives the same masks.
    """
    s = problem.start.clone()
    device = s.device
    budget = problem.budget.to(device)
    relative = torch.tensor([config.attention_rate if g.kind == "attention" else 1.0 for g in problem.space.groups])
    relative = relative[problem.space.group_of].to(device)
    generator = torch.Generator(device).manual_seed(problem.seed)
    baseline = Baseline(config)
    dense = _DenseLosses(problem) if config.baseline == "residual" else None
    forwards = 0
    for step, rows in enumerate(_batches(problem, config)):
        per_batch = config.mask_per == "batch"
        shape = (config.masks, 1 if per_batch else len(rows), problem.space.n)
        masks = (torch.rand(shape, generator=generator, device=device) < s).float()
        losses = torch.stack([problem.evaluate(mask, rows) for mask in masks])
        reference = dense.of(rows) if dense else None
        if per_batch:
            losses = losses.mean(1, keepdim=True)
            reference = None if reference is None else reference.mean(0, keepdim=True)
        forwards += config.masks
        advantages = baseline.advantages(losses, reference)
        samples = config.masks - 1 if config.divisor == "masks_minus_one" else config.masks
        estimate = gradient(masks.flatten(0, 1), advantages.flatten(), s, config.score, samples * shape[1])
        rate = config.learning_rate * _decay(config.schedule, step / config.steps)
        current = budget
        if config.progressive:
            current = budget.relaxed(budget.keep + (1 - budget.keep) * (1 - (step + 1) / config.steps) ** 3)
        s = project(s - rate * relative * estimate, current, config.projection)
        report(
            {
                "step": step + 1,
                "forwards": forwards + (dense.forwards if dense else 0),
                "loss": losses.mean(),
                "loss_deviation": losses.std() if losses.numel() > 1 else losses.new_zeros(()),
                "keep": s.mean(),
                "gradient_norm": estimate.norm(),
                "undecided": ((s > 0.05) & (s < 0.95)).float().mean(),
                "learning_rate": rate,
            }
        )
    return Found(select(s, budget), s, forwards + (dense.forwards if dense else 0))


def _batches(problem: Problem, config: PolicyGradient) -> Iterator[Tensor]:
    """Rows (B,) for each step: the sequences in a new random order every epoch, each once."""
    generator = torch.Generator().manual_seed(problem.seed + 1)
    pending = torch.empty(0, dtype=torch.long)
    for _ in range(config.steps):
        while len(pending) < config.batch_size:
            pending = torch.cat([pending, torch.randperm(problem.sequences, generator=generator)])
        yield pending[: config.batch_size]
        pending = pending[config.batch_size :]


def _decay(schedule: str, progress: float) -> float:
    """Factor of the learning rate at `progress` in [0, 1)."""
    if schedule == "constant":
        return 1.0
    return 1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2


class _DenseLosses:
    """The dense model's loss of each sequence, computed once."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._ones = torch.ones(1, problem.space.n, device=problem.start.device)
        self._losses = torch.full((problem.sequences,), torch.nan, device=problem.start.device)
        self._known = torch.zeros(problem.sequences, dtype=torch.bool)
        self.forwards = 0

    def of(self, rows: Tensor) -> Tensor:
        new = rows[~self._known[rows]].unique()
        if len(new):
            self._losses[new.to(self._losses.device)] = self._problem.evaluate(self._ones, new)
            self._known[new] = True
            self.forwards += 1
        return self._losses[rows.to(self._losses.device)]
