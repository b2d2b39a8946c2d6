"""Which calibration sequences a step looks at, and what the dense model loses on them."""

from typing import Any

import torch
from torch import Tensor

from policyprune.pruning.optimizers.problem import Problem


class Batches:
    """The sequences in a new random order every epoch, each once."""

    def __init__(self, problem: Problem, size: int) -> None:
        self._sequences, self._size = problem.sequences, size
        self._generator = torch.Generator().manual_seed(problem.seed + 1)
        self._pending = torch.empty(0, dtype=torch.long)

    def draw(self) -> Tensor:
        """Rows (B,) of the next step."""
        while len(self._pending) < self._size:
            self._pending = torch.cat([self._pending, torch.randperm(self._sequences, generator=self._generator)])
        rows, self._pending = self._pending[: self._size], self._pending[self._size :]
        return rows

    def state_dict(self) -> dict[str, Any]:
        """The position."""
        return {"generator": self._generator.get_state(), "pending": self._pending.clone()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go back to a position."""
        self._generator.set_state(saved["generator"])
        self._pending = saved["pending"]


class DenseLosses:
    """The dense model's loss of each sequence, computed once."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._ones = torch.ones(1, problem.space.n, device=problem.start.device)
        self._losses = torch.full((problem.sequences,), torch.nan, device=problem.start.device)
        self._known = torch.zeros(problem.sequences, dtype=torch.bool)
        self.forwards = 0

    def of(self, rows: Tensor) -> Tensor:
        """Losses (B,) of the sequences `rows` (B,)."""
        new = rows[~self._known[rows]].unique()
        if len(new):
            self._losses[new.to(self._losses.device)] = self._problem.evaluate(self._ones, new)
            self._known[new] = True
            self.forwards += 1
        return self._losses[rows.to(self._losses.device)]

    def state_dict(self) -> dict[str, Any]:
        """What is known so far."""
        return {"losses": self._losses, "known": self._known, "forwards": self.forwards}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Know what was known then."""
        self._losses = saved["losses"].to(self._losses.device)
        self._known, self.forwards = saved["known"], saved["forwards"]
