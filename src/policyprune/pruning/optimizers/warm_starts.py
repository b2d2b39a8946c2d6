"""Masks that a search may start from, all within the budget."""

from torch import Tensor

from policyprune.pruning.budget import Budget
from policyprune.pruning.optimizers.kwon import best_split, rearrange
from policyprune.pruning.optimizers.problem import Problem
from policyprune.pruning.selection import select


def warm_starts(problem: Problem, budget: Budget) -> list[Tensor]:
    """Kwon et al.'s mask (rearranged where there are gradients), and the most important units of each block alike."""
    metric = problem.metric.detach().cpu().double()
    found = [best_split(metric, problem.space, budget)]
    if problem.gradients is not None:
        gradients = problem.gradients()
        found.append(rearrange(gradients, best_split(gradients.square().mean(0), problem.space, budget), problem.space))
    found.append(select(budget.per_cost(metric), budget.per_block(problem.space)))
    return found
