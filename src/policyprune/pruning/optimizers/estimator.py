"""The policy gradient from sampled masks and their losses: score functions and baselines (methods, section 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

EDGE = 1e-4  # probabilities nearer to 0 or 1 are taken as this far away where something is divided by s (1 - s)


def preconditioner(s: Tensor, score: str) -> Tensor:
    """What (m - s) is divided by: `textbook` s(1-s), the true score; `released` its root; `natural` 1."""
    if score == "natural":
        return torch.ones_like(s)
    variance = (s * (1 - s)).clamp(min=EDGE * (1 - EDGE))
    return variance if score == "textbook" else variance.sqrt()


def gradient(masks: Tensor, advantages: Tensor, s: Tensor, score: str, divisor: float) -> Tensor:
    """sum over samples of advantage * (m - s) / preconditioner / divisor: masks (S, n), advantages (S,) -> (n,)."""
    weighted = advantages @ masks - advantages.sum() * s
    return weighted / preconditioner(s, score) / divisor


@dataclass
class Baseline:
    """Turns losses into advantages; keeps the moving average of `window` steps, None before its first step.

    `losses` is (K, M): K masks for each of M sequences, or (K, 1) when one mask serves the whole batch. `dense` (M,)
    are the dense model's losses of the same sequences, used by `residual` alone.
    """

    kind: str
    window: int
    window_update: str
    average: Tensor | None = None

    def advantages(self, losses: Tensor, dense: Tensor | None) -> Tensor:
        """Advantages (K, M), whose expectation times the score is the gradient (up to the window's first step).

        A loss that is NaN or infinite has the advantage 0, and no part in the baseline of the others.
        """
        values = losses if dense is None else losses - dense
        valid = values.isfinite()
        if self.kind == "none":
            advantages = losses
        elif self.kind == "leave_one_out":
            advantages = _minus_the_others(_filled(losses, valid))
        elif self.kind == "residual":
            assert dense is not None
            advantages = _minus_the_others(_filled(values.reshape(-1), valid.reshape(-1))).view_as(losses)
        else:
            filled = _filled(losses.reshape(-1), valid.reshape(-1)).view_as(losses)
            advantages = self._minus_moving_average(filled, valid)
        return torch.where(valid, advantages, 0)

    def _minus_moving_average(self, losses: Tensor, valid: Tensor) -> Tensor:
        """delta <- (1 - 1/T) delta + (1/T) mean; the first step only sets it, its advantages are zero in the mean."""
        mean, share = losses.mean(), 1 / self.window
        before = torch.full_like(mean, torch.nan) if self.average is None else self.average
        new = torch.where(before.isnan(), mean, (1 - share) * before + share * mean)
        self.average = torch.where(valid.any(), new, before)
        used = self.average if self.window_update == "before_use" else before
        return losses - torch.where(before.isnan(), mean, used)


def _filled(losses: Tensor, valid: Tensor) -> Tensor:
    """Losses with the mean of the valid ones along the first axis in the place of the others; 0 where none is valid."""
    mean = torch.where(valid, losses, 0).sum(0) / valid.sum(0).clamp(min=1)
    return torch.where(valid, losses, mean)


def _minus_the_others(losses: Tensor) -> Tensor:
    """Each loss minus the mean of the other ones along the first axis."""
    count = losses.shape[0]
    return (losses - losses.mean(0, keepdim=True)) * (count / (count - 1))
