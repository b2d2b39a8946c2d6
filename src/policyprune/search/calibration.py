"""Calibration data of a task, in the form that metrics and tuning take."""

import logging
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.config.schema import Calibrated, Classification, Config
from policyprune.models.adapter import Adapter
from policyprune.models.device import in_search_dtype
from policyprune.pruning.compensation import Edits
from policyprune.pruning.importance import Evidence
from policyprune.pruning.space import Space
from policyprune.tasks import Task, by_length
from policyprune.tuning import TUNINGS
from policyprune.tuning.strength import carried_over, choose, split

log = logging.getLogger(__name__)
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
    """What the tuning that the config asks for changes in the kept units, and a report of each block.

    `strength` in the report is the share of the change that is kept, the best one on other calibration sequences
    (not of `bias_compensation`, a baseline as published). Forwards are computed in the data type of the search.
    """
    assert isinstance(config.tuning, Calibrated)
    quick = in_search_dtype(model, config.model)
    fitted, judging = config.tuning.sequences, torch.arange(0)
    if config.tuning.name != "bias_compensation":
        fitted, judging = split(len(task.lengths), config.tuning.sequences)
    rows = by_length(task.lengths[:fitted], BATCH)
    batches = [{name: tensor.to(model.device) for name, tensor in task.inputs(own).items()} for own in rows]
    first_token = isinstance(config.task, Classification) and not hasattr(model, "score")  # a decoder's reads the last
    with torch.no_grad():
        edits, report = TUNINGS[config.tuning.name](quick, adapter, space, mask, batches, config.tuning, first_token)
        strength = {}
        if len(judging):

            def loss(smaller: PreTrainedModel) -> float:
                batches = (judging[own] for own in by_length(task.lengths[judging], BATCH))
                return float(torch.cat([task.loss(smaller, own) for own in batches]).double().mean())

            edits, strength["strength"] = choose(edits, quick, adapter, space, mask, loss)
            told = strength["strength"], len(judging)
            log.info("%g of the tuning has the least loss on %d other sequences", *told)
        edits = carried_over(edits, quick, model, adapter, space, mask)
    return edits, [{**row, **strength} for row in report]
