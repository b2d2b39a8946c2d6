"""Tuning of masks: solvers by the name of their option file in conf/tuning."""

from policyprune.pruning.tuning.conjugate_gradient_squared import solve as cg2
from policyprune.pruning.tuning.least_squares import Solver, tune
from policyprune.pruning.tuning.lsmr import solve as lsmr

SOLVERS: dict[str, Solver] = {"cg2": cg2, "lsmr": lsmr}

__all__ = ["SOLVERS", "tune"]
