"""What a mask comes to in the end: its model, tuned as the run tunes it, against the dense one on other sequences."""

import logging
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.config.schema import Calibrated, Tuning
from policyprune.errors import UsageError
from policyprune.pruning.compensation import Compensation
from policyprune.pruning.prunable import PrunableModel
from policyprune.surgery.shrink import shrink
from policyprune.tasks.divergence import Divergence
from policyprune.tasks.task import CalibrationData, by_length
from policyprune.tuning.fit import BATCH, lesson_on

log = logging.getLogger(__name__)

FITTED = 64  # sequences at most that the model of a mask is tuned on


class Verdict:
    """Judges masks by how far what their models predict is from the dense model, however sure they are, and by losses.

    A loss tells how sure a model is, too. A mask that flattens what it predicts has a high one whatever it predicts.
    `release()` makes `prunable.model` the dense one. A model without logits is judged by its loss.
    """

    def __init__(
        self, prunable: PrunableModel, data: CalibrationData, tuning: Tuning | None, release: Callable[[], None]
    ) -> None:
        self._prunable, self._data, self._tuning, self._release = prunable, data, tuning, release

    @torch.no_grad()
    def __call__(self, mask: Tensor, rows: Tensor, tuned: bool) -> Tensor:
        """Divergence and loss of the sequences `rows` (B,) under a mask (n,) of decisions: (B, 2) float64 on the CPU.

        `tuned`: with the run's tuning, which is then fitted to the first sequences that are not among them.
        """
        self._release()
        mask, compensation = self._prunable.space.expand(mask.cpu()), None
        if tuned and isinstance(self._tuning, Calibrated):
            mask, compensation = self._tuned(self._tuning, mask, rows)
        model = shrink(self._prunable, mask, compensation)
        losses = torch.empty(len(rows), 2, dtype=torch.float64)
        for batch in by_length(self._data.lengths[rows], BATCH):
            for column, loss in enumerate((self._divergence, self._data.loss)):
                losses[batch, column] = loss(model, rows[batch]).double().cpu()
        return losses

    def _tuned(self, tuning: Calibrated, mask: Tensor, rows: Tensor) -> tuple[Tensor, Compensation]:
        lengths = self._data.lengths
        others = torch.ones(len(lengths), dtype=torch.bool)
        others[rows] = False
        own = others.nonzero().flatten()[:FITTED]
        taught = [own[batch] for batch in by_length(lengths[own], BATCH)]
        fitted = tuning.fit(self._prunable, mask, lesson_on(self._prunable, self._data, taught, torch.arange(0)))
        return fitted.mask, fitted.compensation

    @cached_property
    def _divergence(self) -> Callable[[PreTrainedModel, Tensor], Tensor]:
        divergence = Divergence(self._data, self._prunable.model, scaled=True)
        try:
            divergence.loss(self._prunable.model, torch.arange(1))
        except UsageError:
            log.info("the model gives no logits, masks are judged by its loss")
            return self._data.loss
        return divergence.loss
