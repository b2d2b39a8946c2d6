"""What every measure gives."""

import math
from typing import Any, NamedTuple


class Measure(NamedTuple):
    """A measured number, None where it is not finite; `stderr` is the standard error of a mean over examples."""

    metric: str
    value: float | int | None
    unit: str
    protocol: dict[str, Any]
    stderr: float | None = None


def finite(value: float | int | None) -> float | int | None:
    """The number, None where it is not one or infinite."""
    return value if value is not None and math.isfinite(value) else None
