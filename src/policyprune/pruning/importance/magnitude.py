"""L2 norm of all weights that go when a unit goes."""

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from policyprune.pruning.importance.evidence import Evidence


def score(evidence: Evidence) -> Tensor:
    """Norms (n,) float32 on the CPU."""
    squares = []
    for block in evidence.blocks():
        total = torch.zeros(block.count)
        for part in block.parts:
            linear = evidence.model.get_submodule(part.module)
            weight = linear.weight.detach()  # type: ignore[union-attr,operator]
            rows = weight if (part.axis == "out") != isinstance(linear, Conv1D) else weight.T
            own = rows[part.offset : part.offset + block.count * part.width]
            total += own.float().square().sum(1).view(block.count, part.width).sum(1).cpu()
        squares.append(total)
    return torch.cat(squares).sqrt()
