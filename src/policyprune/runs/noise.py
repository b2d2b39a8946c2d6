"""Times whose rounds differ too much to be told apart."""

from collections.abc import Mapping
from typing import Any

NOISY = 0.10  # of the median: a wider interquartile range of the rounds is told


def noise(protocol: Mapping[str, Any]) -> str:
    """What a reader of a time or a ratio has to know of its rounds: `noisy, spread 23 %`; mostly nothing."""
    if "spread" not in protocol:
        return ""  # no time
    spread = protocol["spread"]
    if spread is None:
        return "one round"
    return f"noisy, spread {100 * spread:.0f} %" if spread > NOISY else ""
