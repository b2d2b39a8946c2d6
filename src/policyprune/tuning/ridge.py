"""The ridge problem of one block's output projection, as sums over tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Ridge:
    """||X (W + D)^T - Y||^2 + r ||D||^2 for the change D of weights W (d, F): its sums over tokens, in float64.

    Products of a batch are in float32. X (tokens, F) are the inputs, Y (tokens, d) what should become of them.
    """

    weight: Tensor
    gram: Tensor
    cross: Tensor
    energy: float = 0.0

    @classmethod
    def of(cls, weight: Tensor) -> "Ridge":
        """Without any tokens yet."""
        weight = weight.double()
        features = weight.shape[1]
        return cls(weight, weight.new_zeros(features, features), torch.zeros_like(weight.T))

    def add(self, x: Tensor, target: Tensor) -> None:
        """Take inputs (tokens, F) and the outputs (tokens, d) that they should give."""
        x, target = x.float(), target.float()
        self.gram += x.T @ x
        self.cross += x.T @ target
        self.energy += float(target.double().square().sum())

    def __iadd__(self, other: "Ridge") -> "Ridge":
        """Take the tokens of another problem of the same weights, too."""
        self.gram += other.gram
        self.cross += other.cross
        self.energy += other.energy
        return self

    def error(self, weight: Tensor) -> float:
        """||X weight^T - Y||^2."""
        return float((weight * (weight @ self.gram - 2 * self.cross.T)).sum()) + self.energy

    def solve(self, ridge: float) -> Tensor | None:
        """The new weight (d, F) for r = `ridge` times the mean diagonal of X^T X; None where none is finite."""
        damped = self.gram.clone()
        damped.diagonal().add_(ridge * self.gram.diagonal().mean())
        factor, failed = torch.linalg.cholesky_ex(damped)
        if bool(failed):
            return None
        new = self.weight + torch.cholesky_solve(self.cross - self.gram @ self.weight.T, factor).T
        return new if bool(new.isfinite().all()) else None
