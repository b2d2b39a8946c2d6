"""Uniform random scores."""

import torch
from torch import Tensor

from policyprune.pruning.importance.evidence import Evidence


def score(evidence: Evidence) -> Tensor:
    """Numbers in [0, 1) (n,), the same for the same seed on every device."""
    return torch.rand(evidence.space.n, generator=torch.Generator().manual_seed(evidence.seed))
