"""How much calibration data a stage of a run looked at."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.tasks.task import Task


class Observed:
    """A task that notes which calibration sequences it gives out, and whether their losses may be back-propagated."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._seen = torch.zeros(len(task.lengths), dtype=torch.bool)
        self._gradients = False

    @property
    def protocol(self) -> dict[str, Any]:
        """That of the task."""
        return self._task.protocol

    @property
    def lengths(self) -> Tensor:
        """Those of the task, (N,) int64."""
        return self._task.lengths

    def inputs(self, rows: Tensor) -> dict[str, Tensor]:
        """Those of the task: rows (B,)."""
        self.note(rows)
        return self._task.inputs(rows)

    def loss(self, model: PreTrainedModel, rows: Tensor) -> Tensor:
        """That of the task: rows (B,) -> (B,)."""
        self.note(rows)
        self._gradients |= torch.is_grad_enabled()
        return self._task.loss(model, rows)

    def note(self, rows: Tensor) -> None:
        """Sequences (B,) that are looked at, here or in another process."""
        self._seen[rows.cpu()] = True

    def taken(self) -> dict[str, Any]:
        """Different sequences, and their tokens without padding, since the last call, and whether gradients were on."""
        told = {
            "sequences": int(self._seen.sum()),
            "tokens": int(self.lengths[self._seen].sum()),
            "backpropagation": self._gradients,
        }
        self.load({"seen": torch.zeros_like(self._seen), "gradients": False})
        return told

    def state(self) -> dict[str, Any]:
        """What `load` takes to go on counting in another process."""
        return {"seen": self._seen.clone(), "gradients": self._gradients}

    def load(self, state: dict[str, Any]) -> None:
        """Go on counting from there."""
        self._seen, self._gradients = state["seen"], state["gradients"]
