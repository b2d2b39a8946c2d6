"""Gradients of the loss with respect to the mask, by back-propagation through the model."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.pruning.masking import Masking


def gradients_at(evaluate: Callable[[Tensor, Tensor], Tensor], mask: Tensor, batches: list[Tensor]) -> Iterator[Tensor]:
    """dL/dm of each example at a mask (n,): for each batch of rows (B,) a tensor (B, n), on the mask's device.

    Each example has a mask of its own, so one backward pass gives the gradients of a whole batch, example by example.
    """
    for rows in batches:
        with torch.enable_grad():
            masks = mask.float().repeat(len(rows), 1).requires_grad_()
            (gradient,) = torch.autograd.grad(evaluate(masks, rows).sum(), masks)
        yield gradient


def mask_gradients(
    model: PreTrainedModel,
    masking: Masking,
    units: int,
    batches: list[Tensor],
    loss: Callable[[Tensor], Tensor],
    per: str,
) -> Tensor:
    """dL/dm at m = 1: a row for each example, or for each batch (its mean loss): (rows, units) float32 on the CPU."""

    def evaluate(masks: Tensor, rows: Tensor) -> Tensor:
        masking.set(masks)
        return loss(rows)

    dense = torch.ones(units, device=model.device)
    with masking.on(model):
        found = [gradient.float().cpu() for gradient in gradients_at(evaluate, dense, batches)]
    return torch.cat([own.mean(0, keepdim=True) for own in found] if per == "batch" else found)
