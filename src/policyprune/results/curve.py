"""The curve of a search: one JSON line per step."""

import json
import math
from pathlib import Path
from types import TracebackType

from torch import Tensor


class Curve:
    """Appends steps to `curve.jsonl`. Tensors stay on their device until `every` steps are there, so that the search
    does not wait for them one by one."""

    def __init__(self, path: Path, every: int) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._every = every
        self._pending: list[dict[str, Tensor | float]] = []

    def add(self, step: dict[str, Tensor | float]) -> list[dict[str, float]]:
        """Take a step; return the steps written now as plain numbers, none while they are held back."""
        self._pending.append(step)
        return self.flush() if len(self._pending) >= self._every else []

    def flush(self) -> list[dict[str, float]]:
        """Write what is held back."""
        plain = [{name: _number(value) for name, value in step.items()} for step in self._pending]
        self._pending.clear()
        self._file.writelines(_line(step) + "\n" for step in plain)
        self._file.flush()
        return plain

    def __enter__(self) -> "Curve":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
        self._file.close()


def _number(value: Tensor | float) -> float:
    return float(value) if isinstance(value, Tensor) else value


def _line(step: dict[str, float]) -> str:
    """JSON has no infinity and no NaN: they become null."""
    return json.dumps({name: value if math.isfinite(value) else None for name, value in step.items()})
