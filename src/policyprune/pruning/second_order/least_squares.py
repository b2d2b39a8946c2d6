"""Least squares of a block's output projection: sums over tokens, and the best weights for some of its features."""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCKS = 4  # of rows of a symmetric product


@dataclass
class LeastSquares:
    """||X V' - Y||^2 + r ||V - W||^2 for new weights V (d, F) in the place of W: its sums over tokens, in float64.

    X (tokens, F) are the inputs of the projection, Y (tokens, d) what should become of them, r a `ridge` relative to
    the mean diagonal of X'X. `gram` is X'X, `cross` X'Y, `energy` ||Y||^2. Products of a batch are in float32.
    """

    weight: Tensor
    gram: Tensor
    cross: Tensor
    energy: float = 0.0

    @classmethod
    def of(cls, weight: Tensor) -> "LeastSquares":
        """Without any tokens yet."""
        weight = weight.double()
        features = weight.shape[1]
        return cls(weight, weight.new_zeros(features, features), torch.zeros_like(weight.T))

    def add(self, x: Tensor, target: Tensor) -> None:
        """Take inputs (tokens, F) and the outputs (tokens, d) that they should give."""
        x, target = x.float(), target.float()
        self.gram += gram_of(x)
        self.cross += x.T @ target
        self.energy += float(target.double().square().sum())

    def __iadd__(self, other: "LeastSquares") -> "LeastSquares":
        """Take the tokens of another problem of the same weights, too."""
        self.gram += other.gram
        self.cross += other.cross
        self.energy += other.energy
        return self

    def of_features(self, features: Tensor) -> "LeastSquares":
        """The same problem with some features (k,) alone."""
        gram = self.gram[features][:, features]
        return LeastSquares(self.weight[:, features], gram, self.cross[features], self.energy)

    def error(self, weight: Tensor) -> float:
        """||X V' - Y||^2 of weights V (d, F)."""
        return float((weight * (weight @ self.gram - 2 * self.cross.T)).sum()) + self.energy

    def damped(self, ridge: float) -> tuple[Tensor, Tensor]:
        """H = X'X + r I (F, F) and G = X'Y + r W' (F, d): the weights V at a set S of features solve H_SS V_S' =
        G_S."""
        amount = (ridge * self.gram.diagonal().mean()).clamp(min=1e-12)  # a block may have no activations at all
        matrix = self.gram.clone()
        matrix.diagonal().add_(amount)
        return matrix, self.cross + amount * self.weight.T

    def solve(self, ridge: float, features: Tensor | None = None) -> Tensor | None:
        """The best weights (d, k) of the `features` (k,), of all without; None where there are none that are finite."""
        matrix, right = self.damped(ridge)
        if features is not None:
            matrix, right = matrix[features][:, features], right[features]
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if bool(failed):
            return None
        new = torch.cholesky_solve(right, factor).T
        return new if bool(new.isfinite().all()) else None


def gram_of(x: Tensor) -> Tensor:
    """x'x (F, F) of x (tokens, F) in float32; what is below the diagonal is copied from above it, in blocks."""
    x = x.float()
    size = -(-x.shape[1] // BLOCKS)
    gram = x.new_empty(x.shape[1], x.shape[1])
    for begin in range(0, x.shape[1], size):
        own = x[:, begin : begin + size].T @ x[:, begin:]
        gram[begin : begin + size, begin:] = own
        gram[begin:, begin : begin + size] = own.T
    return gram
