"""Calibration data of a task, in the form that metrics and tuning take."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.config.schema import Calibrated, Classification, Config
from policyprune.models.adapter import Adapter
from policyprune.pruning.edits import Edits
from policyprune.pruning.importance import Evidence
from policyprune.pruning.space import Space
from policyprune.pruning.tuning import TUNINGS
from policyprune.tasks import Task, by_length

BATCH = 32


def gather(
    config: Config, model: PreTrainedModel, quick: PreTrainedModel, adapter: Adapter, space: Space, task: Task
) -> Evidence:
    """What the metric may look at: the first `importance.sequences` calibration sequences.

    `quick` is the model in the data type of the search, which gradients are taken of.
    """
    return Evidence(
        model,
        adapter,
        space,
        by_length(task.lengths[: config.importance.sequences], BATCH),
        task.inputs,
        lambda rows: task.loss(quick, rows),
        config.budget.keep,
        config.seed,
        config.importance.gradient_per,
        quick,
    )


def fit_edits(
    config: Config, model: PreTrainedModel, adapter: Adapter, space: Space, mask: Tensor, task: Task
) -> tuple[Edits, list[dict[str, Any]]]:
    """What the tuning that the config asks for changes in the kept units, and a report of each block."""
    assert isinstance(config.tuning, Calibrated)
    rows = by_length(task.lengths[: config.tuning.sequences], BATCH)
    batches = [{name: tensor.to(model.device) for name, tensor in task.inputs(own).items()} for own in rows]
    first_token = isinstance(config.task, Classification) and not hasattr(model, "score")  # a decoder's reads the last
    with torch.no_grad():
        return TUNINGS[config.tuning.name](model, adapter, space, mask, batches, config.tuning, first_token)
