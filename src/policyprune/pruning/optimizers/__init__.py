"""Optimizers by the name in their config."""

from typing import Any, Protocol

from policyprune.pruning.optimizers import evolution, greedy, gumbel, kwon, one_shot, policy_gradient, straight_through
from policyprune.pruning.optimizers import from_run as given
from policyprune.pruning.optimizers.ppo import ppo
from policyprune.pruning.optimizers.problem import FORGETFUL, Found, NoState, Problem, Report, State


class Search(Protocol):
    """An optimizer: one that goes step by step saves its state after each, the others have none."""

    def __call__(self, problem: Problem, config: Any, report: Report, state: State = FORGETFUL) -> Found:
        """The mask that it found."""


OPTIMIZERS: dict[str, Search] = {
    "one_shot": one_shot.search,
    "policy_gradient": policy_gradient.search,
    "kwon": kwon.search,
    "ppo": ppo.search,
    "evolution": evolution.search,
    "gumbel": gumbel.search,
    "straight_through": straight_through.search,
    "greedy": greedy.search,
    "given": given.search,
}

__all__ = ["OPTIMIZERS", "Found", "NoState", "Problem", "Search", "State"]
