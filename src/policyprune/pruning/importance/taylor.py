"""First-order Taylor importance of a unit (Ma et al., LLM-Pruner, NeurIPS 2023)."""

from torch import Tensor

from policyprune.pruning.importance.evidence import Evidence


def score(evidence: Evidence) -> Tensor:
    """Mean over examples (or batches) of |dL/dm|, the first-order change of the loss when the unit goes: (n,)."""
    return evidence.gradients.abs().mean(0)
