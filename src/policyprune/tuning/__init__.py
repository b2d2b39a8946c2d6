"""Tunings by the name of their option file in conf/tuning: what they change in the kept units' output projections."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from policyprune.pruning.compensation import Compensation
from policyprune.pruning.prunable import PrunableModel
from policyprune.tuning.bias_compensation import compensate
from policyprune.tuning.least_squares import rescale
from policyprune.tuning.reconstruct import reconstruct
from policyprune.tuning.teacher_student import Batch

Report = list[dict[str, Any]]  # a row for each block: layer, kind, outcome, error, binary_error
Tuning = Callable[[PrunableModel, Tensor, list[Batch], Any, bool], tuple[Compensation, Report]]
# mask, calibration batches, the tuning's options, whether the last layer is about the first token alone

TUNINGS: dict[str, Tuning] = {
    "cg2": rescale,
    "lsmr": rescale,
    "bias_compensation": compensate,
    "reconstruct": reconstruct,
}
