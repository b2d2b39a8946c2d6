"""Gradients of the loss with respect to the mask, by back-propagation through the dense model."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.pruning.masking import Masking


def mask_gradients(
    model: PreTrainedModel,
    masking: Masking,
    units: int,
    batches: list[Tensor],
    loss: Callable[[Tensor], Tensor],
    per: str,
) -> Tensor:
    """dL/dm at m = 1: a row for each example, or for each batch (its mean loss): (rows, units) float32 on the CPU.

    Each example has a mask of its own, so one backward pass gives the gradients of a whole batch, example by example.
    """
    collected = []
    with masking.on(model), torch.enable_grad():
        for rows in batches:
            masks = torch.ones(len(rows), units, device=model.device, requires_grad=True)
            masking.set(masks)
            (gradient,) = torch.autograd.grad(loss(rows).sum(), masks)
            if per == "batch":
                gradient = gradient.mean(0, keepdim=True)
            collected.append(gradient.float().cpu())
    return torch.cat(collected)
