"""Second-order importance: what a block loses when a unit goes and the others make up for it as well as they can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from policyprune.config.fields import named, number, setting
from policyprune.config.schema import Importance
from policyprune.config.schema.run import SEQUENCES

if TYPE_CHECKING:
    from torch import Tensor

    from policyprune.pruning.importance.evidence import Evidence
    from policyprune.pruning.second_order.statistics import Recipe


@dataclass(kw_only=True)
class OBS(Importance):
    """Optimal brain surgeon: units go one after the other, the rest of their block gets its least-squares weights."""

    name: str = named("obs")
    sequences: int | None = number(None, at_least=1, help=SEQUENCES)

    ridge: float = number(0.1, above=0, help="relative to the mean diagonal of the normal matrix")
    together: int = number(16, at_least=1, help="features of a block that go at a time")
    relative: bool = setting(True, help="an error counts relative to the residual that it is added to")
    first_order: bool = setting(False, help="units also go by how much of the output they are, as in Tyr-the-Pruner")

    def recipe(self) -> Recipe:
        """How the statistics are gathered, and weights solved for."""
        from policyprune.pruning.second_order.statistics import Recipe

        return Recipe(self.ridge, self.together, self.relative, self.first_order)

    def score(self, evidence: Evidence) -> Tensor:
        """Scores (n,) float32 on the CPU: how much a block's error rises when a unit goes at its turn."""
        return evidence.second_order.scores()
