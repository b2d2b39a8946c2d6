"""Gradients of the loss with respect to the mask, by back-propagation through the dense model."""

import torch
from torch import Tensor

from policyprune.pruning.importance.evidence import Evidence
from policyprune.pruning.masking import Masking


def mask_gradients(evidence: Evidence) -> Tensor:
    """dL/dm at m = 1: a row for each example, or for each batch (its mean loss): (rows, n) float32 on the CPU.

    Each example has a mask of its own, so one backward pass gives the gradients of a whole batch, example by example.
    """
    space, masking = evidence.space, Masking(evidence.adapter, evidence.space)
    collected = []
    with masking.on(evidence.model), torch.enable_grad():
        for rows in evidence.rows:
            masks = torch.ones(len(rows), space.n, device=evidence.model.device, requires_grad=True)
            masking.set(masks)
            (gradient,) = torch.autograd.grad(evidence.loss(rows).sum(), masks)
            if evidence.gradient_per == "batch":
                gradient = gradient.mean(0, keepdim=True)
            collected.append(gradient.float().cpu())
    return torch.cat(collected)
