"""LSMR (Fong and Saunders 2011), as Kwon et al. use it, by SciPy."""

import torch
from scipy.sparse.linalg import lsmr
from torch import Tensor


def solve(matrix: Tensor, right: Tensor, tolerance: float, iterations: int) -> Tensor | None:
    """Solve matrix (k, k) x = right (k,) in the least-squares sense in float64; None when the result is not finite."""
    a, b = matrix.double().cpu().numpy(), right.double().cpu().numpy()
    x = torch.from_numpy(lsmr(a, b, atol=tolerance, btol=tolerance, maxiter=iterations)[0]).to(matrix.device)
    return x if bool(x.isfinite().all()) else None
