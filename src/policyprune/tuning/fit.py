"""Fit a tuning to calibration sequences, and keep the share of it that lowers the loss of other sequences most."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.config.schema import Calibrated
from policyprune.pruning.compensation import carried_over, part
from policyprune.pruning.prunable import PrunableModel
from policyprune.surgery.checkpoint import auto_class
from policyprune.surgery.shrink import shrink
from policyprune.tasks.task import CalibrationData, by_length
from policyprune.tuning.teacher_student import Fitted, Lesson

log = logging.getLogger(__name__)

BATCH = 32  # sequences at a time
SHARES = (1.0, 0.5, 0.0)  # of the change, that are tried
HELD_OUT = 64  # sequences at most


@torch.no_grad()
def fit(
    prunable: PrunableModel,
    mask: Tensor,
    data: CalibrationData,
    config: Calibrated,
    quick: PrunableModel | None = None,
) -> Fitted:
    """What the tuning `config.name` changes in the units that mask (n,) keeps, and a report of each block.

    `quick` is the model in the data type of the forward passes, the model itself where there is none. `strength` in the
    report is the share of the change that is kept: the best one on calibration sequences that it was not fitted to.
    A tuning that is a baseline as published has none.
    """
    quick = quick or prunable
    fitted, held_out = config.sequences, torch.arange(0)
    if config.chooses_strength:
        fitted, held_out = split(len(data.lengths), config.sequences)
    rows = by_length(data.lengths[:fitted], BATCH)
    found: Fitted = config.fit(quick, mask, lesson_on(quick, data, rows, held_out))
    if len(held_out):

        def loss(smaller: PreTrainedModel) -> float:
            batches = (held_out[batch] for batch in by_length(data.lengths[held_out], BATCH))
            return float(torch.cat([data.loss(smaller, batch) for batch in batches]).double().mean())

        found, share = choose(found, quick, mask, loss)
        log.info("%g of the tuning has the least loss on %d other sequences", share, len(held_out))
    return replace(found, compensation=carried_over(found.compensation, quick, prunable, found.mask))


def lesson_on(prunable: PrunableModel, data: CalibrationData, rows: list[Tensor], held_out: Tensor) -> Lesson:
    """What is taught from batches `rows` (B,) of the data, and judged by the sequences `held_out` (H,)."""
    batches = [{name: tensor.to(prunable.device) for name, tensor in data.inputs(batch).items()} for batch in rows]
    return Lesson(batches, reads_first_token(prunable.model), rows, held_out, data)


def reads_first_token(model: PreTrainedModel) -> bool:
    """Whether the head looks at the first token alone: a classifier of an encoder does, a decoder's takes the last."""
    return auto_class(model) == "AutoModelForSequenceClassification" and not hasattr(model, "score")


def split(sequences: int, fitted: int | None) -> tuple[int, Tensor]:
    """How many rows a tuning is fitted to, and those held out, `HELD_OUT` at most.

    It is fitted to the first `fitted` (None: all), the next are held out. Where fewer
    than an eighth as many follow, the last eighth of the fitted ones is held out instead; none of one sequence.
    """
    fitted = sequences if fitted is None else min(fitted, sequences)
    wanted = min(HELD_OUT, max(1, fitted // 8))
    cut = fitted if sequences - fitted >= wanted else max(1, fitted - wanted)
    return cut, torch.arange(cut, min(sequences, cut + HELD_OUT))


def choose(
    fitted: Fitted, prunable: PrunableModel, mask: Tensor, loss: Callable[[PreTrainedModel], float]
) -> tuple[Fitted, float]:
    """The tuning of a mask (n,) at the share in `SHARES` whose smaller model has the least loss, and the share.

    Of equal losses the largest share is taken; without any the mask stays, too. A block's output is nearer to the dense
    one after a tuning; whether that is better for the loss shows only behind all blocks. Biases stay whole.
    """
    tried = {}
    for share in SHARES:
        own = fitted.mask if share else mask
        partial = part(fitted.compensation, share, prunable, own)
        value = loss(shrink(prunable, own, partial))
        report = [{**row, "strength": share} for row in fitted.report]
        tried[share] = (value if math.isfinite(value) else math.inf, Fitted(own, partial, report))
    best = min(SHARES, key=lambda share: tried[share][0])
    return tried[best][1], best
