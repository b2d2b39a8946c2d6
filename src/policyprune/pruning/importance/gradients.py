"""Gradients of the loss with respect to the mask, by back-propagation through the model."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.pruning.masking import Masking

Evaluate = Callable[[Tensor, Tensor], Tensor]  # masks (B, n) and rows (B,) to losses (B,)


def gradients_of(evaluate: Evaluate, masks: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (B,) of examples under masks (B, n), and dL/dm of each, (B, n).

    Each example has a mask of its own, so one backward pass gives the gradients of a whole batch, example by example.
    """
    with torch.enable_grad():
        leaf = masks.detach().clone().requires_grad_()
        losses = evaluate(leaf, rows)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), gradient


def gradients_at(evaluate: Evaluate, mask: Tensor, batches: list[Tensor]) -> Iterator[Tensor]:
    """dL/dm of each example at a mask (n,): for each batch of rows (B,) a tensor (B, n), on the mask's device."""
    for rows in batches:
        yield gradients_of(evaluate, mask.float().repeat(len(rows), 1), rows)[1]


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
