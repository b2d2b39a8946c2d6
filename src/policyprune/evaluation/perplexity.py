"""Perplexity over fixed windows: exp of the mean loss over all predicted tokens."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.models.sequences import token_losses


@torch.inference_mode()
def window_losses(
    model: PreTrainedModel,
    windows: Tensor,
    batch_tokens: int,
    advance: Callable[[int], object] = lambda done: None,
) -> Tensor:
    """Mean loss (nats, float64) of each window (N, L) -> (N,): each token but the first of its window is predicted.

    `advance(n)` is told how many windows were done. NaN where a loss is not a number, none is dropped.
    """
    losses = []
    for batch in windows.split(max(1, batch_tokens // windows.shape[1])):
        losses.append(token_losses(model, batch.to(model.device)).double().mean(-1).cpu())
        advance(len(batch))
    return torch.cat(losses)


def of_losses(losses: Tensor) -> tuple[float, float | None]:
    """Perplexity of the mean losses of windows (N,), and its standard error, as if windows were independent.

    The error is None for one window and where the perplexity is not finite.
    """
    mean = float(losses.mean())
    value = math.exp(mean) if not mean >= 700 else math.inf
    error = value * float(losses.std()) / math.sqrt(len(losses)) if len(losses) > 1 else None
    return value, error if error is not None and math.isfinite(error) else None


def perplexity(model: PreTrainedModel, windows: Tensor, batch_tokens: int) -> float:
    """Perplexity of windows (N, L), NaN where a loss is not a number."""
    return of_losses(window_losses(model, windows, batch_tokens))[0]
