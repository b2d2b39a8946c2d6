"""What an importance score may look at."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor
from transformers import PreTrainedModel

from policyprune.models.adapter import Adapter, Block
from policyprune.pruning.importance.gradients import mask_gradients
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.second_order.statistics import USUAL, Recipe, SecondOrder
from policyprune.pruning.space import Space


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The dense model with its units, and calibration sequences in batches of rows (B,).

    `inputs(rows)` are the arguments of the model's forward, `loss(rows)` the losses (B,), which carry gradients where
    they are enabled. `loss` is of `quick`, the same model in another data type, where there is one. `gradient_per` is
    `example` or `batch`. `first_token`: the head reads the first token alone.
    `gather` makes or finds the second-order statistics, by a `recipe`.
    """

    prunable: PrunableModel
    rows: list[Tensor]
    inputs: Callable[[Tensor], dict[str, Tensor]]
    loss: Callable[[Tensor], Tensor]
    keep: float
    seed: int
    gradient_per: str = "example"
    first_token: bool = False
    quick: PrunableModel | None = None
    gather: Callable[[PrunableModel, list[dict[str, Tensor]], bool, Recipe], SecondOrder] = SecondOrder.of
    recipe: Recipe = USUAL

    @property
    def model(self) -> PreTrainedModel:
        """The dense model."""
        return self.prunable.model

    @property
    def adapter(self) -> Adapter:
        """Its adapter."""
        return self.prunable.adapter

    @property
    def space(self) -> Space:
        """The units that are scored."""
        return self.prunable.units

    def blocks(self) -> list[Block]:
        """The blocks of these units, in the order of the space."""
        return self.prunable.prunable_blocks

    def batches(self) -> list[dict[str, Tensor]]:
        """The inputs of all batches."""
        return [self.inputs(rows) for rows in self.rows]

    @cached_property
    def gradients(self) -> Tensor:
        """Mask gradients (rows, n), back-propagated once."""
        return mask_gradients(self.quick or self.prunable, self.rows, self.loss, self.gradient_per)

    @cached_property
    def second_order(self) -> SecondOrder:
        """How the units of each block stand in for each other, gathered once."""
        return self.gather(self.quick or self.prunable, self.batches(), self.first_token, self.recipe)

    def second_order_behind(self, mask: Tensor) -> SecondOrder:
        """The same behind layers that keep as many units as under mask (n,) of the units."""
        return self.second_order.behind(self.batches(), self.first_token, mask)
