"""The losses of masks, by forward passes of the dense model's weights."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.errors import UsageError
from policyprune.pruning.masking import Masking
from policyprune.pruning.optimizers.problem import Job
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import Key
from policyprune.surgery.sliced import Sliced

Refit = Callable[[Tensor], dict[Key, Tensor]]
Loss = Callable[[PreTrainedModel, Tensor], Tensor]


class Forwards:
    """Masked forwards where each sequence has a mask of its own; with `sliced`, those of one mask leave out the rest.

    Masks that need gradients, those of hidden channels, and a model that does not fit its devices (offloaded weights)
    are never sliced. With `refit`, which makes of a mask (n,) the weights (d, k) of output projections by block, sliced
    forwards compute with these. Losses come back on the device of the model's first layer, wherever the last one is.
    """

    def __init__(self, prunable: PrunableModel, loss: Loss, sliced: bool, refit: Refit | None = None) -> None:
        self._model, self._space, self._loss = prunable.model, prunable.space, loss
        self._masking = Masking(prunable.adapter, prunable.units)
        whole = not any(parameter.is_meta for parameter in self._model.parameters())  # else accelerate loads as it goes
        self._refit = refit
        self._sliced = Sliced(prunable) if sliced and whole and not prunable.has_hidden_units else None
        if refit is not None and self._sliced is None:
            raise UsageError(
                "optimizer: this one gives weights to each mask, the model has to fit its devices for that"
            )

    def __call__(self, masks: Tensor, rows: Tensor) -> Tensor:
        """Losses (B,) of the sequences `rows` (B,) under masks (B, n) or (1, n)."""
        if self._sliced is None or len(masks) > 1 or masks.requires_grad:
            self._masking.set(self._space.expand(masks.to(self._model.device)))
            losses = self._loss(self._model, rows)
        else:
            mask = self._space.expand(masks[0])
            if self._refit is None:
                self._sliced.set(mask)
            else:
                mask = mask.cpu()
                self._sliced.set_for(rows.numpy().tobytes(), mask, self._refit(mask))
            losses = self._loss(self._sliced.model, rows)
        return (with_gradients(losses) if masks.requires_grad else losses).to(self._model.device)

    def forget(self) -> None:
        """Masks get other weights from now on."""
        if self._sliced is not None:
            self._sliced.set(torch.ones(self._space.units.n))

    def each(self, jobs: Sequence[Job]) -> list[Tensor]:
        """Losses (B,) of each job. The masks that weights are sliced by leave the device together, in one transfer."""
        if self._sliced is None:
            return [self(masks, rows) for masks, rows in jobs]
        single = [masks for masks, _ in jobs if len(masks) == 1]
        on_host = iter(torch.cat(single).cpu().split(1)) if single else iter(())
        return [self(next(on_host) if len(masks) == 1 else masks, rows) for masks, rows in jobs]

    def release(self) -> None:
        """The model is the dense one, until it is evaluated under masks again."""
        self._masking.set(None)

    @contextmanager
    def on(self) -> Iterator["Forwards"]:
        """Masks act during the block."""
        with self._masking.on(self._model):
            yield self


def with_gradients(losses: Tensor) -> Tensor:
    """The losses (B,); UsageError where gradients are enabled and these have none, as a caller's own may."""
    if torch.is_grad_enabled() and not losses.requires_grad:
        raise UsageError(
            "data.loss: its losses have no gradients, as if made under torch.no_grad() or detached, but the search or "
            "the scores go backwards; leave that out, or use method=ours_forward, which needs their values alone"
        )
    return losses
