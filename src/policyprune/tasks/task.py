"""What a task gives to the search and to the evaluation, and how much of its data a stage of a run used."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.errors import UsageError
from policyprune.models.sequences import longest_sequence


@runtime_checkable
class CalibrationData(Protocol):
    """Calibration sequences 0, 1, ..., N - 1, each with a loss: all that pruning looks at."""

    @property
    def lengths(self) -> Tensor:
        """Tokens of each calibration sequence without padding, (N,) int64."""

    def inputs(self, rows: Tensor) -> dict[str, Tensor]:
        """Arguments of the model's forward for the calibration sequences `rows` (B,), padded to the longest of them."""

    def loss(self, model: PreTrainedModel, rows: Tensor) -> Tensor:
        """Loss of each calibration sequence: rows (B,) -> (B,) float32 on the model's device."""


class Task(CalibrationData, Protocol):
    """Calibration data, and a protocol for the record."""

    @property
    def protocol(self) -> dict[str, Any]:
        """Where the data came from and how it was cut, for the record."""


def by_length(lengths: Tensor, size: int) -> list[Tensor]:
    """All rows in batches of `size` with sequences of about the same length, so that little padding is computed."""
    return list(lengths.argsort(stable=True).split(size))


def check_positions(model: PreTrainedModel, lengths: Mapping[str, int]) -> None:
    """UsageError for the first of some lengths in tokens, by config key, that is more than the model's positions.

    Weights are not needed.
    """
    most = longest_sequence(model.config)
    for key, length in lengths.items():
        if most is not None and length > most:
            raise UsageError(f"{key}: {length} is more than the {most} positions of this model, use less")


class CalibrationUsage:
    """A task that counts the calibration sequences that it gives out, and notes whether gradients were on."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._used = torch.zeros(len(task.lengths), dtype=torch.bool)
        self._gradients = False

    @property
    def protocol(self) -> dict[str, Any]:
        """The task's protocol."""
        return self._task.protocol

    @property
    def lengths(self) -> Tensor:
        """Tokens of each calibration sequence, (N,) int64."""
        return self._task.lengths

    def inputs(self, rows: Tensor) -> dict[str, Tensor]:
        """The task's inputs: rows (B,)."""
        self.note(rows)
        return self._task.inputs(rows)

    def loss(self, model: PreTrainedModel, rows: Tensor) -> Tensor:
        """The task's loss: rows (B,) -> (B,)."""
        self.note(rows)
        self._gradients |= torch.is_grad_enabled()
        return self._task.loss(model, rows)

    def note(self, rows: Tensor) -> None:
        """Count sequences (B,) that are used here or in another process."""
        self._used[rows.cpu()] = True

    def taken(self) -> dict[str, Any]:
        """Different sequences and their tokens without padding since the last call, and whether gradients were on."""
        usage = {
            "sequences": int(self._used.sum()),
            "tokens": int(self.lengths[self._used].sum()),
            "backpropagation": self._gradients,
        }
        self.load({"seen": torch.zeros_like(self._used), "gradients": False})
        return usage

    def state(self) -> dict[str, Any]:
        """What `load` takes to go on counting in another process."""
        return {"seen": self._used.clone(), "gradients": self._gradients}

    def load(self, state: dict[str, Any]) -> None:
        """Go on counting from a state."""
        self._used, self._gradients = state["seen"], state["gradients"]
