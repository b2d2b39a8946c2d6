"""Optimizers by the name in their config."""

from collections.abc import Callable
from typing import Any

from policyprune.pruning.optimizers import one_shot, policy_gradient
from policyprune.pruning.optimizers.problem import Found, Problem, Report

Search = Callable[[Problem, Any, Report], Found]

OPTIMIZERS: dict[str, Search] = {
    "one_shot": one_shot.search,
    "policy_gradient": policy_gradient.search,
}

__all__ = ["OPTIMIZERS", "Found", "Problem", "Search"]
