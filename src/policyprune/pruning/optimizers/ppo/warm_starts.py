"""Masks that a search may start from, all within the budget."""

import torch
from torch import Tensor

from policyprune.pruning.budget.budget import Budget
from policyprune.pruning.budget.selection import select
from policyprune.pruning.importance.gradients import gradients_at
from policyprune.pruning.optimizers.held_out_losses import Jury
from policyprune.pruning.optimizers.kwon import best_split, rearrange
from policyprune.pruning.optimizers.problem import Problem


def warm_starts(problem: Problem, budget: Budget, jury: Jury, stages: int) -> list[Tensor]:
    """Kwon et al.'s mask, the most important units of each block alike, and what needs gradients.

    These are Kwon et al.'s mask rearranged, and the mask that pruning in `stages` ends with (none without stages).
    """
    metric = problem.metric.detach().cpu().double()
    found = [best_split(metric, problem.space, budget)]
    if problem.gradients is not None:
        gradients = problem.gradients()
        found.append(rearrange(gradients, best_split(gradients.square().mean(0), problem.space, budget), problem.space))
        if stages:
            found.append(in_stages(problem, budget, jury, stages))
    found.append(select(budget.per_cost(metric), budget.per_block(problem.space)))
    return found


def in_stages(problem: Problem, budget: Budget, jury: Jury, stages: int) -> Tensor:
    """From dense to the budget in equal steps, each dropping what has the least Fisher information per cost by then.

    The Fisher information of a unit changes as others go, which one look at the dense model cannot tell: each stage
    takes the gradients of the masked model, on fresh training examples. What has gone stays gone.
    """
    mask = torch.ones(problem.space.n, dtype=torch.bool)
    for stage in range(1, stages + 1):
        found = gradients_at(problem.evaluate, mask.to(problem.start.device), jury.draw(times=4))
        fisher = torch.cat([own.double().cpu().nan_to_num() for own in found]).square().mean(0)
        worth = torch.where(mask, budget.per_cost(fisher), -1.0)
        mask = select(worth, budget.relaxed(1 - (1 - budget.keep) * stage / stages))
    return mask
