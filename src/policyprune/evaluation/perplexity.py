"""Perplexity over fixed windows: exp of the mean loss over all predicted tokens."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.models.causal_loss import token_losses


@torch.inference_mode()
def perplexity(
    model: PreTrainedModel,
    windows: Tensor,
    batch_tokens: int,
    advance: Callable[[int], object] = lambda done: None,
) -> float:
    """Perplexity of windows (N, L): each token but the first of its window is predicted, sums are float64.

    `advance(n)` is told how many windows were done. NaN where a loss is not a number, none is dropped.
    """
    total = torch.zeros((), dtype=torch.float64)
    for batch in windows.split(max(1, batch_tokens // windows.shape[1])):
        total += token_losses(model, batch.to(model.device)).double().sum().cpu()
        advance(len(batch))
    mean = float(total) / (windows.shape[0] * (windows.shape[1] - 1))
    return math.exp(mean) if not mean >= 700 else math.inf
