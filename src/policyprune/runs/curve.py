"""The curve of a search: one JSON line per step."""

import hashlib
import json
import math
import os
from pathlib import Path
from types import TracebackType

from torch import Tensor

Written = tuple[int, str]  # bytes of a curve file, and their sha256
EMPTY: Written = (0, hashlib.sha256().hexdigest())


class Curve:
    """Appends steps to `curve.jsonl`, after the first `keep` bytes of what is there. Tensors stay on their device until
    `every` steps are there, so that the search does not wait for them one by one."""

    def __init__(self, path: Path, every: int, keep: int = 0) -> None:
        self._file = path.open("ab", buffering=0)
        self._file.truncate(keep)
        self._sum = hashlib.sha256(path.read_bytes())
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
        text = "".join(_line(step) + "\n" for step in plain).encode()
        self._sum.update(text)
        while text:
            text = text[self._file.write(text) :]
        return plain

    def sync(self) -> Written:
        """Make sure that what was written outlives a power failure, and tell it from anything else."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size, self._sum.hexdigest()

    def __enter__(self) -> "Curve":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()
        finally:
            self._file.close()


def read_curve(path: Path, written: Written) -> list[dict[str, float]] | None:
    """The steps in what was written of a curve file, null as NaN; None where it is not that any more."""
    size, checksum = written
    try:
        with path.open("rb") as file:
            text = file.read(size)
        rows = [json.loads(line) for line in text.splitlines()]
    except (FileNotFoundError, ValueError):
        return None
    if hashlib.sha256(text).hexdigest() != checksum or not all(isinstance(row, dict) for row in rows):
        return None
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]


def _number(value: Tensor | float) -> float:
    return float(value) if isinstance(value, Tensor) else value


def _line(step: dict[str, float]) -> str:
    """JSON has no infinity and no NaN: they become null."""
    return json.dumps({name: value if math.isfinite(value) else None for name, value in step.items()})
