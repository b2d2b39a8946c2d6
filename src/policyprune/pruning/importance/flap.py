"""FLAP (An et al., AAAI 2024): how much a unit's input fluctuates, weighted by its columns of the output projection."""

from dataclasses import dataclass

import torch
from torch import Tensor

from policyprune.models.layerwise import projection, walk, watch
from policyprune.pruning.importance.evidence import Evidence


@torch.no_grad()
def score(evidence: Evidence) -> Tensor:
    """Scores (n,) float32 on the CPU: var(X_j) * ||W_:j||_2^2, standardised in each block, mean over a unit's columns.

    W is the output or down projection, X its input in the dense model, with the sample variance over all tokens but
    padding. Standardised scores are compared over all blocks as they are, not per cost.
    """
    scores = []
    for layer in walk(evidence.model, evidence.adapter, evidence.batches()):
        blocks = [block for block in evidence.blocks() if block.layer == layer.index]
        moments = {block.out: Moments() for block in blocks}
        for seen in watch(evidence.model, layer, list(moments), final=True):
            for name, (x, _) in seen.items():
                moments[name].add(x)
        for block in blocks:
            weight, _ = projection(evidence.model, block)
            per_column = moments[block.out].variance() * weight.double().square().sum(0)
            spread = per_column.std().clamp(min=torch.finfo(torch.float64).tiny)
            standard = (per_column - per_column.mean()) / spread
            scores.append(standard.view(block.count, block.width).mean(1).float().cpu())
    return torch.cat(scores)


@dataclass
class Moments:
    """Mean and squared deviations, merged batch by batch (Chan et al. 1979), so that a large mean costs no digits."""

    count: int = 0
    mean: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, x: Tensor) -> None:
        """Take samples (N, features)."""
        if not len(x):
            return
        x = x.double()
        mean, both = x.mean(0), self.count + len(x)
        gap = mean - self.mean
        self.squares = self.squares + (x - mean).square().sum(0) + gap.square() * (self.count * len(x) / both)
        self.mean = self.mean + gap * (len(x) / both)
        self.count = both

    def variance(self) -> Tensor:
        """Sample variance (features,) float64."""
        assert isinstance(self.squares, Tensor)
        return self.squares / max(self.count - 1, 1)
