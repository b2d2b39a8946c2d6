"""Losses of masks on calibration examples: for rewards, and held out, to judge what a search begins and ends with."""

import math

import torch
from torch import Tensor

from policyprune.errors import UsageError
from policyprune.pruning.budget.budget import Budget
from policyprune.pruning.budget.selection import select
from policyprune.pruning.importance.gradients import gradients_at
from policyprune.pruning.optimizers.kwon import best_split, rearrange
from policyprune.pruning.optimizers.problem import Problem

SLICE = 32  # examples of about the same length that are evaluated together


class HeldOutLosses:
    """Splits the calibration examples into those that rewards are taken from and those that masks are judged by.

    `held_out` is the share of the latter, `examples` how many a reward is taken from.
    """

    def __init__(self, problem: Problem, held_out: float, examples: int, generator: torch.Generator) -> None:
        self._problem, self._generator = problem, generator
        order = torch.randperm(problem.sequences, generator=generator)
        if problem.sequences < 2:
            raise UsageError("task.calibration.count: 1 sequence cannot be split, optimizer=ppo needs 2 or more")
        cut = min(max(1, round(held_out * problem.sequences)), problem.sequences - 1)
        self._held_out = self._slices(order[:cut])
        self._training = self._slices(order[cut:])
        self._per_reward = max(1, round(examples / SLICE))
        self.forwards = 0

    def _slices(self, rows: Tensor) -> list[Tensor]:
        return list(rows[self._problem.lengths[rows].argsort(stable=True)].split(SLICE))

    def draw(self, times: int = 1) -> list[Tensor]:
        """Random slices of training examples for the rewards of an iteration (`times` as many)."""
        count = min(times * self._per_reward, len(self._training))
        return [self._training[i] for i in torch.randperm(len(self._training), generator=self._generator)[:count]]

    def losses(self, mask: Tensor, slices: list[Tensor]) -> Tensor:
        """Loss of each example under a mask (n,)."""
        device = self._problem.start.device
        self.forwards += len(slices)
        losses = self._problem.losses([(mask.float()[None].to(device), rows) for rows in slices])
        return torch.cat(losses).double().cpu()

    def loss(self, mask: Tensor, slices: list[Tensor]) -> float:
        """Mean loss under a mask (n,); infinite where that of any example is NaN or infinite."""
        losses = self.losses(mask, slices)
        return float(losses.mean()) if bool(losses.isfinite().all()) else math.inf

    def better(self, challenger: Tensor, incumbent: Tensor) -> bool:
        """Whether the challenger has the lower loss on fresh training examples, the same for both."""
        slices = self.draw(times=4)
        new, old = self.losses(challenger, slices), self.losses(incumbent, slices)
        if not bool(old.isfinite().all()):
            return bool(new.isfinite().all())
        return bool((new - old).mean() < 0)

    def judged(self, mask: Tensor, tuned: bool) -> Tensor:
        """Divergence and loss of each held-out example under a mask (n,): (H, 2); without a judge twice the loss."""
        if self._problem.judge is None:
            return self.losses(mask, self._held_out)[:, None].expand(-1, 2)
        return self._problem.judge(mask, torch.cat(self._held_out), tuned)


def warm_starts(problem: Problem, budget: Budget, losses: HeldOutLosses, stages: int) -> dict[str, Tensor]:
    """Masks that a search may start from, all within the budget, by name.

    These are Kwon et al.'s mask of the scores, the most important units of each block alike, and, where there are
    gradients, Kwon et al.'s mask rearranged and the mask that pruning in `stages` ends with (none without stages).
    """
    scores = problem.importance.detach().cpu().double()
    masks = {"fisher_search": best_split(scores, problem.space, budget)}
    if problem.gradients is not None:
        gradients = problem.gradients()
        split = best_split(gradients.square().mean(0), problem.space, budget)
        masks["rearranged"] = rearrange(gradients, split, problem.space)
        if stages:
            masks["stages"] = in_stages(problem, budget, losses, stages)
    masks["per_block"] = select(budget.per_cost(scores), budget.per_block(problem.space))
    return masks


def in_stages(problem: Problem, budget: Budget, losses: HeldOutLosses, stages: int) -> Tensor:
    """From dense to the budget in equal steps, each dropping what has the least Fisher information per cost by then.

    The Fisher information of a unit changes as others go, which one look at the dense model cannot tell: each stage
    takes the gradients of the masked model, on fresh training examples. What has gone stays gone.
    """
    mask = torch.ones(problem.space.n, dtype=torch.bool)
    for stage in range(1, stages + 1):
        gradients = gradients_at(problem.evaluate, mask.to(problem.start.device), losses.draw(times=4))
        fisher = torch.cat([batch.double().cpu().nan_to_num() for batch in gradients]).square().mean(0)
        worth = torch.where(mask, budget.per_cost(fisher), -1.0)
        mask = select(worth, budget.relaxed(1 - (1 - budget.keep) * stage / stages))
    return mask
