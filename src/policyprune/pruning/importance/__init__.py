"""Importance metrics by the name of their option file in conf/importance."""

from collections.abc import Callable

from torch import Tensor

from policyprune.pruning.importance import block_influence, constant, fisher, flap, magnitude, random, taylor, wanda_sp
from policyprune.pruning.importance.evidence import Evidence

METRICS: dict[str, Callable[[Evidence], Tensor]] = {
    "wanda_sp": wanda_sp.score,
    "magnitude": magnitude.score,
    "random": random.score,
    "constant": constant.score,
    "fisher": fisher.score,
    "taylor": taylor.score,
    "flap": flap.score,
    "block_influence": block_influence.score,
}

__all__ = ["METRICS", "Evidence"]
