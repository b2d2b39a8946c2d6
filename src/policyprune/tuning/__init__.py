"""Tunings by the name of their option file in conf/tuning: what they change in the kept units' output projections."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from policyprune.models.adapter import Adapter
from policyprune.pruning.compensation import Edits
from policyprune.pruning.space import Space
from policyprune.tuning.bias_compensation import compensate
from policyprune.tuning.conjugate_gradient_squared import solve as cg2
from policyprune.tuning.least_squares import Solver, tune
from policyprune.tuning.lsmr import solve as lsmr
from policyprune.tuning.reconstruct import reconstruct

Report = list[dict[str, Any]]
Tuning = Callable[
    [PreTrainedModel, Adapter, Space, Tensor, list[dict[str, Tensor]], Any, bool], tuple[Edits, Report]
]  # model, adapter, space, mask, batches, its config, whether the last layer is about the first token alone


def _scaling(solver: Solver) -> Tuning:
    def scale(
        model: PreTrainedModel,
        adapter: Adapter,
        space: Space,
        mask: Tensor,
        batches: list[dict[str, Tensor]],
        config: Any,
        first_token: bool,
    ) -> tuple[Edits, Report]:
        scales, report = tune(model, adapter, space, mask, batches, config, solver, first_token)
        return Edits(scales), report

    return scale


SOLVERS: dict[str, Solver] = {"cg2": cg2, "lsmr": lsmr}
TUNINGS: dict[str, Tuning] = {name: _scaling(solver) for name, solver in SOLVERS.items()}
TUNINGS |= {"bias_compensation": compensate, "reconstruct": reconstruct}

__all__ = ["SOLVERS", "TUNINGS", "tune"]
