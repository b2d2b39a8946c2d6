"""Conjugate gradient squared (Sonneveld 1989), the solver of G-Pruner's CG2MT."""

import torch
from torch import Tensor


def solve(matrix: Tensor, right: Tensor, tolerance: float, iterations: int) -> Tensor | None:
    """Solve matrix (k, k) x = right (k,) in float64, from x = 0; scaled by the diagonal.

    Returns the iterate with the smallest residual once that is below `tolerance` relative to `right`, or when the
    iterations end or the method breaks down (a vanishing inner product); None when no iterate is better than x = 0.
    """
    matrix, right = matrix.double(), right.double()
    scale = matrix.diagonal().clamp(min=torch.finfo(matrix.dtype).tiny).rsqrt()
    matrix, b = scale[:, None] * matrix * scale, scale * right
    goal = float(b.norm())
    x = torch.zeros_like(b)
    best, best_norm = None, goal
    r, shadow = b.clone(), b.clone()
    p, q, rho = torch.zeros_like(b), torch.zeros_like(b), 1.0
    for step in range(iterations):
        new_rho = float(shadow @ r)
        if not abs(new_rho) > 1e-30 * goal * goal:
            break
        beta = new_rho / rho if step else 0.0
        u = r + beta * q
        p = u + beta * (q + beta * p)
        v = matrix @ p
        curvature = float(shadow @ v)
        if not abs(curvature) > 1e-30 * goal * goal:
            break
        alpha = new_rho / curvature
        q = u - alpha * v
        x = x + alpha * (u + q)
        r = r - alpha * (matrix @ (u + q))
        rho = new_rho
        true_norm = float((b - matrix @ x).norm())
        if not true_norm < 1e6 * goal:
            break
        if true_norm < best_norm:
            best, best_norm = x, true_norm
        if best_norm <= tolerance * goal:
            break
    return None if best is None else scale * best
