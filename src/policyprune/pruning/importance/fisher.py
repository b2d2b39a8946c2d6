"""Diagonal of the empirical Fisher information of the mask (Kwon et al., NeurIPS 2022)."""

from torch import Tensor

from policyprune.pruning.importance.evidence import Evidence


def score(evidence: Evidence) -> Tensor:
    """Mean over examples (or batches) of the squared gradient of the loss with respect to each mask: (n,)."""
    return evidence.gradients.square().mean(0)
