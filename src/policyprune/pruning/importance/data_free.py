"""Importance scores that look at no data: of the weights, or of nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from policyprune.config.fields import named
from policyprune.config.schema import Importance

if TYPE_CHECKING:
    from torch import Tensor

    from policyprune.pruning.importance.evidence import Evidence


@dataclass(kw_only=True)
class DataFree(Importance):
    """Base of the scores that look at no data, so that `sequences` and `gradient_per` do nothing."""

    needs_calibration: ClassVar[bool] = False
    handles_hidden: ClassVar[bool] = True


@dataclass(kw_only=True)
class Constant(DataFree):
    """No preference among units."""

    name: str = named("constant")

    def score(self, evidence: Evidence) -> Tensor:
        """Ones (n,)."""
        import torch

        return torch.ones(evidence.space.n)


@dataclass(kw_only=True)
class Random(DataFree):
    """Uniform random scores."""

    name: str = named("random")

    def score(self, evidence: Evidence) -> Tensor:
        """Numbers in [0, 1) (n,), the same for the same seed on every device."""
        import torch

        return torch.rand(evidence.space.n, generator=torch.Generator().manual_seed(evidence.seed))


@dataclass(kw_only=True)
class Magnitude(DataFree):
    """L2 norm of all weights that go when a unit goes."""

    name: str = named("magnitude")

    def score(self, evidence: Evidence) -> Tensor:
        """Norms (n,) float32 on the CPU."""
        import torch
        from transformers.pytorch_utils import Conv1D

        from policyprune.pruning.space import HIDDEN

        squares = [_of_hidden(evidence)] if HIDDEN in evidence.space.views(torch.empty(evidence.space.n)) else []
        for block in evidence.blocks():
            total = torch.zeros(block.count)
            for part in block.parts:
                linear = evidence.model.get_submodule(part.module)
                weight = linear.weight.detach()  # type: ignore[union-attr,operator]
                rows = weight if (part.axis == "out") != isinstance(linear, Conv1D) else weight.T
                of_block = rows[part.offset : part.offset + block.count * part.width]
                total += of_block.float().square().sum(1).view(block.count, part.width).sum(1).cpu()
            squares.append(total)
        return torch.cat(squares).sqrt()


def _of_hidden(evidence: Evidence) -> Tensor:
    """Squared norms of the hidden channels (d,): embeddings, norms, projections and head, shared weights once."""
    import torch
    from transformers.pytorch_utils import Conv1D

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
