"""Prune by the metric alone."""

from policyprune.config.schema import OneShot
from policyprune.pruning.optimizers.problem import FORGETFUL, Found, Problem, Report, State
from policyprune.pruning.selection import select


def search(problem: Problem, config: OneShot, report: Report, state: State = FORGETFUL) -> Found:
    """Keep the units with the highest metric per cost; no forward pass is spent."""
    budget = problem.budget
    mask = select(problem.metric.double() / budget.cost, budget)
    return Found(mask, problem.start, forwards=0)
