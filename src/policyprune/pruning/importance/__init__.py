"""Importance metrics by the name of their option file in conf/importance."""

from collections.abc import Callable

from torch import Tensor

from policyprune.errors import RunError
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

__all__ = ["METRICS", "Evidence", "scores_of"]


def scores_of(name: str, evidence: Evidence) -> Tensor:
    """Scores (n,) of a metric; RunError where some are NaN or infinite, which no order of units can be made of."""
    scores = METRICS[name](evidence)
    wrong = (~scores.isfinite()).nonzero().flatten().tolist()
    if wrong:
        group = evidence.space.groups[int(evidence.space.group_of[wrong[0]])]
        where = f"the {group.kind} of layer {group.layer}" if group.layer >= 0 else f"the {group.kind} channels"
        raise RunError(
            f"importance: {name} gives {len(wrong)} of {len(scores)} units a score that is NaN or infinite, the first "
            f"in {where}; weights or gradients overflow, try model.dtype=float32 model.search_dtype=float32"
        )
    return scores
