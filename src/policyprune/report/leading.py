"""Which rows of a column are ahead: the best one, and those that nothing tells from it."""

import math
from collections.abc import Hashable, Mapping
from typing import Any

from policyprune.report.metrics import better

RULE = (
    "Bold: the best mean of a column and those within one standard error of the difference (from the deviation over "
    "seeds and the metric's own standard error); nothing where the best has neither."
)
SHARED = ("perplexity",)  # all rows see one text, whose windows differ far more than the rows do on them


def leading(metric: str, cells: Mapping[Hashable, Any]) -> set[Hashable]:
    """The keys of the cells that are bold; none where there is nothing to compare, or no error of the best is known.

    The standard error of a mean is that over its seeds and that of the metric itself (over examples, which all seeds
    share) together; of a perplexity over several seeds, that over the seeds alone. A cell without any is taken to have
    that of the best.
    """
    finite = {key: cell for key, cell in cells.items() if cell.mean == cell.mean}
    if len(finite) < 2:
        return set()
    best = max(finite, key=lambda key: better(metric) * finite[key].mean)
    own = _error(metric, finite[best])
    if own is None:
        return set()
    ahead = set()
    for key, cell in finite.items():
        error = _error(metric, cell)
        reach = math.hypot(own, own if error is None else error)
        if key == best or abs(cell.mean - finite[best].mean) <= reach:
            ahead.add(key)
    return ahead


def _error(metric: str, cell: Any) -> float | None:
    """Standard error of a cell's mean, None where nothing is known of it."""
    seeds = cell.deviation / math.sqrt(cell.n) if cell.deviation == cell.deviation else None
    if seeds is not None and metric in SHARED:
        return float(seeds)
    known = [value for value in (seeds, cell.stderr) if value is not None and value == value]
    return math.hypot(*known) if known else None
