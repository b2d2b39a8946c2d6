"""Calibration data of a task, in the form that metrics and tuning take."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.config.schema import Classification, Config, LeastSquares
from policyprune.models.adapter import Adapter
from policyprune.pruning.importance import Evidence
from policyprune.pruning.space import Space
from policyprune.pruning.tuning import SOLVERS, tune
from policyprune.tasks import Task, by_length

BATCH = 32


def gather(config: Config, model: PreTrainedModel, adapter: Adapter, space: Space, task: Task) -> Evidence:
    """What the metric may look at: the first `importance.sequences` calibration sequences."""
    return Evidence(
        model,
        adapter,
        space,
        by_length(task.lengths[: config.importance.sequences], BATCH),
        task.inputs,
        lambda rows: task.loss(model, rows),
        config.budget.keep,
        config.seed,
        config.importance.gradient_per,
    )


def fit_scales(
    config: Config, model: PreTrainedModel, adapter: Adapter, space: Space, mask: Tensor, task: Task
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Scales (n,) by the tuning that the config asks for, and a report of each block."""
    assert isinstance(config.tuning, LeastSquares)
    rows = by_length(task.lengths[: config.tuning.sequences], BATCH)
    batches = [{name: tensor.to(model.device) for name, tensor in task.inputs(own).items()} for own in rows]
    first_token = isinstance(config.task, Classification) and not hasattr(model, "score")  # a decoder's reads the last
    with torch.no_grad():
        return tune(model, adapter, space, mask, batches, config.tuning, SOLVERS[config.tuning.name], first_token)
