"""What a metric may look at."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor
from transformers import PreTrainedModel

from policyprune.models.adapter import Adapter, Block
from policyprune.pruning.importance.gradients import mask_gradients
from policyprune.pruning.masking import Masking
from policyprune.pruning.space import Space


@dataclass(frozen=True)
class Evidence:
    """The dense model, its units, and calibration sequences in batches of rows (B,).

    `loss` is of `quick`, the same model in another data type, where there is one.

    `inputs(rows)` are the arguments of the model's forward, `loss(rows)` the losses (B,), which carry gradients where
    they are enabled. `gradient_per` is `example` or `batch`.
    """

    model: PreTrainedModel
    adapter: Adapter
    space: Space
    rows: list[Tensor]
    inputs: Callable[[Tensor], dict[str, Tensor]]
    loss: Callable[[Tensor], Tensor]
    keep: float
    seed: int
    gradient_per: str = "example"
    quick: PreTrainedModel | None = None

    @cached_property
    def gradients(self) -> Tensor:
        """Mask gradients (rows, n), back-propagated once."""
        model = self.model if self.quick is None else self.quick
        return mask_gradients(
            model, Masking(self.adapter, self.space), self.space.n, self.rows, self.loss, self.gradient_per
        )

    def batches(self) -> list[dict[str, Tensor]]:
        """The inputs of all batches."""
        return [self.inputs(rows) for rows in self.rows]

    def blocks(self) -> list[Block]:
        """The blocks of the space, in its order."""
        wanted = {(group.layer, group.kind) for group in self.space.groups}
        return [block for block in self.adapter.blocks if (block.layer, block.kind) in wanted]
