"""Optimizers by the name in their config."""

from collections.abc import Callable
from typing import Any

from policyprune.pruning.optimizers import kwon, one_shot, policy_gradient, ppo
from policyprune.pruning.optimizers.problem import Found, Problem, Report

Search = Callable[[Problem, Any, Report], Found]

OPTIMIZERS: dict[str, Search] = {
    "one_shot": one_shot.search,
    "policy_gradient": policy_gradient.search,
    "kwon": kwon.search,
    "ppo": ppo.search,
}

__all__ = ["OPTIMIZERS", "Found", "Problem", "Search"]
