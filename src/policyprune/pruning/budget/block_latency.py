"""Time of a transformer layer as a function of what is left of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

KINDS = ("attention", "ffn")


@dataclass(frozen=True)
class Timing:
    """A measured layer: kept attention and FFN units, and its time relative to the dense layer's."""

    attention: int
    ffn: int
    time: float


@dataclass(frozen=True)
class BlockLatency:
    """Time relative to a dense layer: `layer` if anything of it is left, and for each block that is not empty
    `fixed` + `unit` * kept units, by kind."""

    layer: float
    fixed: dict[str, float]
    unit: dict[str, float]

    def of(self, attention: int, ffn: int) -> float:
        """Time of a layer that is not deleted, relative to the dense layer."""
        kept = dict(zip(KINDS, (attention, ffn), strict=True))
        return self.layer + sum(self.fixed[kind] + self.unit[kind] * count for kind, count in kept.items() if count)


def fit(timings: Sequence[Timing]) -> BlockLatency:
    """The model with non-negative terms that is nearest to the measured times in the mean squared relative error."""
    rows = np.array([[1, t.attention > 0, t.attention, t.ffn > 0, t.ffn] for t in timings], dtype=np.float64)
    times = np.array([t.time for t in timings])
    largest = np.maximum(rows.max(0), 1)
    terms = nnls(rows / largest / times[:, None], np.ones(len(times)))[0] / largest
    layer, fixed, unit = float(terms[0]), terms[[1, 3]].tolist(), terms[[2, 4]].tolist()
    return BlockLatency(layer, dict(zip(KINDS, fixed, strict=True)), dict(zip(KINDS, unit, strict=True)))
