"""No preference among units."""

import torch
from torch import Tensor

from policyprune.pruning.importance.evidence import Evidence


def score(evidence: Evidence) -> Tensor:
    """Ones (n,)."""
    return torch.ones(evidence.space.n)
