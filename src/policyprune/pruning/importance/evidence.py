"""What a metric may look at."""

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from policyprune.models.adapter import Adapter, Block
from policyprune.pruning.space import Space


@dataclass(frozen=True)
class Evidence:
    """The dense model, its units, and calibration batches (arguments of the model's forward)."""

    model: PreTrainedModel
    adapter: Adapter
    space: Space
    batches: list[dict[str, Tensor]]
    keep: float
    seed: int

    def blocks(self) -> list[Block]:
        """The blocks of the space, in its order."""
        wanted = {(group.layer, group.kind) for group in self.space.groups}
        return [block for block in self.adapter.blocks if (block.layer, block.kind) in wanted]
