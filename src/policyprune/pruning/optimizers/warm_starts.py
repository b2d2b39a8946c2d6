"""Masks that a search may start from, all within the budget."""

from dataclasses import replace

import torch
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
    found.append(select(metric / budget.cost, even(budget, problem)))
    return found


def even(budget: Budget, problem: Problem) -> Budget:
    """The same budget with each block held to its own share."""
    group_of = problem.space.group_of
    totals = torch.zeros_like(budget.pool_limit).index_add(0, budget.pool, budget.cost)
    share = (budget.pool_limit / totals)[budget.pool]
    limit = torch.zeros(len(problem.space.groups), dtype=torch.float64).index_add(0, group_of, budget.cost * share)
    return replace(budget, segment=group_of, limit=limit)
