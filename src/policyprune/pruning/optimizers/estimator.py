"""The policy gradient from sampled masks and their losses: score functions and baselines (methods, section 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from policyprune.config.schema import PolicyGradient

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
    """Turns losses into advantages; keeps the moving average.

    `losses` is (K, M): K masks for each of M sequences, or (K, 1) when one mask serves the whole batch. `dense` (M,)
    are the dense model's losses of the same sequences, used by `residual` alone.
    """

    config: PolicyGradient
    average: Tensor | None = None

    def advantages(self, losses: Tensor, dense: Tensor | None) -> Tensor:
        """Advantages (K, M), whose expectation times the score is the gradient (up to the window's first step)."""
        kind = self.config.baseline
        if kind == "none":
            return losses
        if kind == "leave_one_out":
            return _minus_the_others(losses)
        if kind == "residual":
            assert dense is not None
            return _minus_the_others((losses - dense).reshape(-1)).view_as(losses)
        return self._minus_moving_average(losses)

    def _minus_moving_average(self, losses: Tensor) -> Tensor:
        """delta <- (1 - 1/T) delta + (1/T) mean; the first step only sets it, its advantages are zero in the mean."""
        mean, share = losses.mean(), 1 / self.config.window
        if self.average is None:
            self.average = mean
            return losses - mean
        before = self.average
        self.average = (1 - share) * before + share * mean
        return losses - (self.average if self.config.window_update == "before_use" else before)


def _minus_the_others(losses: Tensor) -> Tensor:
    """Each loss minus the mean of the other ones along the first axis."""
    count = losses.shape[0]
    return (losses - losses.mean(0, keepdim=True)) * (count / (count - 1))
