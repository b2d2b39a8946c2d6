"""Importance scores by the gradients of the loss with respect to the mask, back-propagated through the dense model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from policyprune.config.fields import named, number
from policyprune.config.schema import Importance
from policyprune.config.schema.run import SEQUENCES

if TYPE_CHECKING:
    from torch import Tensor

    from policyprune.pruning.importance.evidence import Evidence


@dataclass(kw_only=True)
class Fisher(Importance):
    """Diagonal of the empirical Fisher information of the mask (Kwon et al., NeurIPS 2022)."""

    name: str = named("fisher")
    sequences: int | None = number(2048, at_least=1, help=SEQUENCES)

    back_propagates: ClassVar[bool] = True
    handles_hidden: ClassVar[bool] = True

    def score(self, evidence: Evidence) -> Tensor:
        """Mean over examples (or batches) of the squared gradient of the loss with respect to each mask: (n,)."""
        return evidence.gradients.square().mean(0)


@dataclass(kw_only=True)
class Taylor(Importance):
    """First-order Taylor importance of a unit (Ma et al., LLM-Pruner, NeurIPS 2023)."""

    name: str = named("taylor")
    sequences: int | None = number(None, at_least=1, help=SEQUENCES)

    back_propagates: ClassVar[bool] = True
    handles_hidden: ClassVar[bool] = True

    def score(self, evidence: Evidence) -> Tensor:
        """Mean over examples (or batches) of |dL/dm|, the first-order change of the loss when the unit goes: (n,)."""
        return evidence.gradients.abs().mean(0)
