"""What every measure gives."""

from typing import Any, NamedTuple


class Measure(NamedTuple):
    """A measured number; `stderr` is the standard error of a mean over examples, None for other numbers."""

    metric: str
    value: float | int
    unit: str
    protocol: dict[str, Any]
    stderr: float | None = None
