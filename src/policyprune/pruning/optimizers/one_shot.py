"""Prune by the metric alone."""

from policyprune.config.schema import OneShot
from policyprune.pruning.budget.selection import one_shot_mask
from policyprune.pruning.optimizers.problem import FORGETFUL, Found, Problem, Report, State


def search(problem: Problem, config: OneShot, report: Report, state: State = FORGETFUL) -> Found:
    """Keep the units with the highest metric, per cost where it is meant so; no forward pass is spent.

    Whole blocks and layers have the sum of their units' metric, so beside units they go when all of theirs do.
    """
    mask = one_shot_mask(problem.metric, problem.budget, problem.per_cost)
    return Found(mask, problem.start, forwards=0)
