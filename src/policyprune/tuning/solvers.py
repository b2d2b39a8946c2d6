"""Solvers of a block's normal equations: conjugate gradient squared and LSMR."""

import torch
from scipy.sparse import linalg
from torch import Tensor


def cg2(matrix: Tensor, right: Tensor, tolerance: float, iterations: int) -> Tensor | None:
    """Solve matrix (k, k) x = right (k,) by conjugate gradient squared (Sonneveld 1989), as G-Pruner's CG2MT does.

    It starts from x = 0, in float64, and scales the system by its diagonal.

    Returns the iterate with the smallest residual once that is below `tolerance` relative to `right`, or when the
    iterations end or the method breaks down (a vanishing inner product); None when no iterate is better than x = 0.
    SciPy's `cgs` gives the last iterate, not the best, and on the CPU alone; the best of its iterates differ from these
    by up to 2e-8 of the largest entry (measured on systems of condition 1e3).
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


def lsmr(matrix: Tensor, right: Tensor, tolerance: float, iterations: int) -> Tensor | None:
    """Solve matrix (k, k) x = right (k,) in the least-squares sense, in float64; None when the result is not finite.

    It is SciPy's LSMR (Fong and Saunders 2011), which Kwon et al. use.
    """
    a, b = matrix.double().cpu().numpy(), right.double().cpu().numpy()
    x = torch.from_numpy(linalg.lsmr(a, b, atol=tolerance, btol=tolerance, maxiter=iterations)[0]).to(matrix.device)
    return x if bool(x.isfinite().all()) else None
