"""L2 norm of all weights that go when a unit goes."""

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from policyprune.pruning.importance.evidence import Evidence
from policyprune.pruning.space import HIDDEN


def score(evidence: Evidence) -> Tensor:
    """Norms (n,) float32 on the CPU."""
    squares = [_of_hidden(evidence)] if HIDDEN in evidence.space.views(torch.empty(evidence.space.n)) else []
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


def _of_hidden(evidence: Evidence) -> Tensor:
    """Squared norms of the hidden channels (d,): embeddings, norms, projections and head, shared weights once."""
    hidden = evidence.adapter.hidden
    assert hidden is not None
    total, seen = torch.zeros(hidden.count), set()
    for name, axis in hidden.parts:
        module = evidence.model.get_submodule(name)
        weight = getattr(module, "weight", None)
        if weight is not None and id(weight) not in seen:
            seen.add(id(weight))
            rows = weight.detach() if (axis == "out") != isinstance(module, Conv1D) else weight.detach().T
            total += rows.float().square().reshape(hidden.count, -1).sum(1).cpu()
    return total
