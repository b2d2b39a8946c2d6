"""Gradients of the loss with respect to the mask, by back-propagation through the model."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from policyprune.pruning.prunable import PrunableModel

Evaluate = Callable[[Tensor, Tensor], Tensor]  # masks (B, n) and rows (B,) to losses (B,)


def gradients_of(evaluate: Evaluate, masks: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (B,) of examples under masks (B, n), and dL/dm of each, (B, n).

    Each example has a mask of its own, so one backward pass gives the gradients of a whole batch, example by example.
    """
    with torch.enable_grad():
        copies = masks.detach().clone().requires_grad_()
        losses = evaluate(copies, rows)
        (gradient,) = torch.autograd.grad(losses.sum(), copies)
    return losses.detach(), gradient


def gradients_at(evaluate: Evaluate, mask: Tensor, batches: list[Tensor]) -> Iterator[Tensor]:
    """dL/dm of each example at a mask (n,): for each batch of rows (B,) a tensor (B, n), on the mask's device."""
    for rows in batches:
        yield gradients_of(evaluate, mask.float().repeat(len(rows), 1), rows)[1]


def mask_gradients(
    prunable: PrunableModel, batches: list[Tensor], loss: Callable[[Tensor], Tensor], per: str
) -> Tensor:
    """dL/dm at m = 1: a row for each example, or for each batch (its mean loss): (rows, units) float32 on the CPU."""
    dense = torch.ones(prunable.units.n, device=prunable.device)
    with prunable.masking() as masking:

        def evaluate(masks: Tensor, rows: Tensor) -> Tensor:
            masking.set(masks)
            return loss(rows)

        gradients = [gradient.float().cpu() for gradient in gradients_at(evaluate, dense, batches)]
    return torch.cat([examples.mean(0, keepdim=True) for examples in gradients] if per == "batch" else gradients)
