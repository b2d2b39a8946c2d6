"""What every task gives to the search and to the evaluation."""

from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedModel


class Task(Protocol):
    """Calibration sequences 0..sequences-1 with a loss each, and a protocol for the record."""

    @property
    def protocol(self) -> dict[str, Any]:
        """Where the data came from and how it was cut, for the record."""

    @property
    def lengths(self) -> Tensor:
        """Tokens of each calibration sequence without padding, (N,) int64."""

    def inputs(self, rows: Tensor) -> dict[str, Tensor]:
        """Arguments of the model's forward for the calibration sequences `rows` (B,), padded to the longest of them."""

    def loss(self, model: PreTrainedModel, rows: Tensor) -> Tensor:
        """Loss of each calibration sequence: rows (B,) -> (B,) float32 on the model's device."""


def by_length(lengths: Tensor, size: int) -> list[Tensor]:
    """All rows in batches of `size` with sequences of about the same length, so that little padding is computed."""
    return list(lengths.argsort(stable=True).split(size))
