"""Least squares of a block's output projection: sums over tokens, and the best weights for some of its features."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

BLOCKS = 4  # of rows of a symmetric product
PIECE = 1 << 24  # numbers at most that are held for a moment, of what is as large as a matrix


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
        add_gram(self.gram, x)
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
        gram = part_of(self.gram, features)
        return LeastSquares(self.weight[:, features], gram, self.cross[features], self.energy)

    def finite(self) -> bool:
        """Whether all sums are numbers: those of float32 products are far from what float64 holds."""
        return bool((self.gram.sum() + self.cross.sum()).isfinite())

    def error(self, weight: Tensor) -> float:
        """||X V' - Y||^2 of weights V (d, F)."""
        change = weight @ self.gram
        change -= 2 * self.cross.T
        return float((weight * change).sum()) + self.energy

    def damped(self, ridge: float) -> tuple[Tensor, Tensor]:
        """H = X'X + r I (F, F) and G = X'Y + r W' (F, d): the weights V at a set S of features solve H_SS V_S' =
        G_S."""
        return replace(self, gram=self.gram.clone(), cross=self.cross.clone()).used_up(ridge)

    def used_up(self, ridge: float) -> tuple[Tensor, Tensor]:
        """The same in the place of the sums, which are no longer there."""
        amount = self._amount(ridge)
        self.gram.diagonal().add_(amount)
        self.cross += amount * self.weight.T
        return self.gram, self.cross

    def solve(self, ridge: float, features: Tensor | None = None) -> Tensor | None:
        """The best weights (d, k) of the `features` (k,), of all without; None where there are none that are finite."""
        amount = self._amount(ridge)
        right = self.cross + amount * self.weight.T
        if features is None:
            matrix = self.gram.clone()
        else:
            matrix, right = part_of(self.gram, features), right[features]
        matrix.diagonal().add_(amount)
        factor = cholesky(matrix)
        if factor is None:
            return None
        new = torch.cholesky_solve(right, factor).T
        return new if bool(new.isfinite().all()) else None

    def _amount(self, ridge: float) -> Tensor:
        return (ridge * self.gram.diagonal().mean()).clamp(min=1e-12)  # a block may have no activations at all


def rows_of_a_piece(matrix: Tensor) -> int:
    """How many rows of a matrix (F, k) are worked on at a time, so that little more memory is taken."""
    return max(1, PIECE // max(1, matrix.shape[1]))


def add_gram(total: Tensor, x: Tensor) -> None:
    """Add x'x (F, F) of x (tokens, F), in float32; what is below the diagonal is copied from above it, in blocks."""
    x = x.float()
    size = -(-x.shape[1] // BLOCKS)
    for begin in range(0, x.shape[1], size):
        end = min(begin + size, x.shape[1])
        own = x[:, begin:end].T @ x[:, begin:]
        total[begin:, begin:end] += own.T
        total[begin:end, end:] += own[:, end - begin :]


def cholesky(matrix: Tensor) -> Tensor | None:
    """The lower factor of a symmetric matrix (F, F), in its place; None where it is not positive definite."""
    factor = matrix.T  # the order of columns that the solvers take, so they need no copy
    failed = torch.empty((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(factor, out=(factor, failed))
    return None if bool(failed) else factor


def part_of(matrix: Tensor, features: Tensor, out: Tensor | None = None) -> Tensor:
    """matrix[features][:, features] (k, k); in rising order they may go to `out`, the beginning of the matrix's own
    memory."""
    out = matrix.new_empty(len(features), len(features)) if out is None else out
    size = rows_of_a_piece(matrix)
    for rows, own in zip(out.split(size), features.split(size), strict=True):
        rows.copy_(matrix[own][:, features])
    return out
