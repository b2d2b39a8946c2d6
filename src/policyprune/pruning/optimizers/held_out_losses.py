"""Losses of masks on calibration examples, and which mask is better."""

import math

import torch
from torch import Tensor

from policyprune.config.schema import PPO
from policyprune.errors import UsageError
from policyprune.pruning.optimizers.problem import Problem

SLICE = 32  # examples of about the same length that are evaluated together


class Jury:
    """Splits the calibration examples into those that rewards are taken from and those that pick the final mask."""

    def __init__(self, problem: Problem, config: PPO, generator: torch.Generator) -> None:
        self._problem, self._generator = problem, generator
        order = torch.randperm(problem.sequences, generator=generator)
        if problem.sequences < 2:
            raise UsageError("task.calibration.count: 1 cannot be split, optimizer=ppo needs 2 or more")
        cut = min(max(1, round(config.held_out * problem.sequences)), problem.sequences - 1)
        self._held_out = self._slices(order[:cut])
        self._training = self._slices(order[cut:])
        self._per_reward = max(1, round(config.examples / SLICE))
        self.forwards = 0

    def _slices(self, rows: Tensor) -> list[Tensor]:
        return list(rows[self._problem.lengths[rows].argsort(stable=True)].split(SLICE))

    def draw(self, times: int = 1) -> list[Tensor]:
        """Random slices of training examples for the rewards of an iteration (`times` as many)."""
        count = min(times * self._per_reward, len(self._training))
        return [self._training[i] for i in torch.randperm(len(self._training), generator=self._generator)[:count]]

    def losses(self, mask: Tensor, rows: list[Tensor]) -> Tensor:
        """Loss of each example under a mask (n,)."""
        device = self._problem.start.device
        self.forwards += len(rows)
        found = self._problem.losses([(mask.float()[None].to(device), own) for own in rows])
        return torch.cat(found).double().cpu()

    def loss(self, mask: Tensor, rows: list[Tensor]) -> float:
        """Mean loss under a mask (n,); infinite where that of any example is NaN or infinite."""
        losses = self.losses(mask, rows)
        return float(losses.mean()) if bool(losses.isfinite().all()) else math.inf

    def better(self, challenger: Tensor, incumbent: Tensor) -> bool:
        """Whether the challenger has the lower loss on fresh training examples, the same for both."""
        rows = self.draw(times=4)
        new, old = self.losses(challenger, rows), self.losses(incumbent, rows)
        if not bool(old.isfinite().all()):
            return bool(new.isfinite().all())
        return bool((new - old).mean() < 0)

    def best(self, masks: list[Tensor]) -> Tensor:
        """The mask with the lowest loss on all held-out examples, the first of equals."""
        return min(masks, key=lambda mask: self.loss(mask, self._held_out))
