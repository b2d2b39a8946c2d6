"""Both solvers against a direct solution, and where there is none."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from policyprune.tuning.solvers import cg2, lsmr

SIZES = st.integers(1, 14)
SEEDS = st.integers(0, 10_000)
SOLVERS = {"cg2": cg2, "lsmr": lsmr}
NAMES = pytest.mark.parametrize("name", SOLVERS)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spd(size: int, seed: int, condition: float) -> Tensor:
    """Symmetric positive definite with eigenvalues from 1 down to 1 / condition."""
    basis = torch.linalg.qr(random(size, size, seed=seed)).Q
    values = torch.logspace(0, -math.log10(condition), size, dtype=torch.float64)
    return (basis * values) @ basis.T


def singular(size: int, seed: int) -> Tensor:
    """Positive semidefinite of about half the rank."""
    factor = random((size + 1) // 2, size, seed=seed)
    return factor.T @ factor


def scaled(matrix: Tensor, vector: Tensor) -> Tensor:
    """A vector in the scale that the conjugate gradients work in: by the root of the diagonal."""
    return vector * matrix.diagonal().clamp(min=torch.finfo(torch.float64).tiny).rsqrt()


def residual(matrix: Tensor, x: Tensor, right: Tensor) -> float:
    """Relative to the right-hand side."""
    return float((right - matrix @ x).norm() / right.norm())


@NAMES
@given(size=SIZES, seed=SEEDS, power=st.floats(0, 2))
def test_a_well_conditioned_system_is_solved_as_directly(name: str, size: int, seed: int, power: float) -> None:
    matrix, right = spd(size, seed, 10**power), random(size, seed=seed + 1)
    x = SOLVERS[name](matrix, right, 1e-12, 400)
    assert x is not None
    assert x.dtype == torch.float64
    torch.testing.assert_close(x, torch.linalg.solve(matrix, right), rtol=1e-6, atol=1e-7)


@NAMES
@given(size=st.integers(2, 14), seed=SEEDS)
def test_an_ill_conditioned_system_leaves_a_small_residual(name: str, size: int, seed: int) -> None:
    matrix = spd(size, seed, 1e8)
    right = matrix @ random(size, seed=seed + 1)
    x = SOLVERS[name](matrix, right, 1e-10, 1000)
    assert x is not None
    assert residual(matrix, x, right) < 1e-4


@NAMES
@given(size=st.integers(2, 14), seed=SEEDS)
def test_a_singular_system_that_has_solutions_is_solved(name: str, size: int, seed: int) -> None:
    matrix = singular(size, seed)
    right = matrix @ random(size, seed=seed + 1)
    x = SOLVERS[name](matrix, right, 1e-10, 1000)
    assert x is not None
    assert residual(matrix, x, right) < 1e-4


@NAMES
@given(size=st.integers(2, 14), seed=SEEDS)
def test_a_matrix_that_rounding_made_indefinite_is_solved(name: str, size: int, seed: int) -> None:
    exact = singular(size, seed)
    matrix = exact - 1e-12 * torch.eye(size, dtype=torch.float64)
    assert float(torch.linalg.eigvalsh(matrix)[0]) < 0
    right = exact @ random(size, seed=seed + 1)
    x = SOLVERS[name](matrix, right, 1e-8, 1000)
    assert x is not None
    assert x.isfinite().all()
    assert residual(matrix, x, right) < 1e-4


@NAMES
@given(size=SIZES, seed=SEEDS)
def test_a_zero_right_hand_side_moves_nothing(name: str, size: int, seed: int) -> None:
    x = SOLVERS[name](spd(size, seed, 10), torch.zeros(size, dtype=torch.float64), 1e-8, 100)
    assert x is None or not x.any()


@NAMES
@given(size=SIZES, seed=SEEDS)
def test_float32_systems_are_solved_in_float64(name: str, size: int, seed: int) -> None:
    matrix, right = spd(size, seed, 10).float(), random(size, seed=seed + 1).float()
    x = SOLVERS[name](matrix, right, 1e-12, 400)
    assert x is not None
    assert x.dtype == torch.float64
    assert residual(matrix.double(), x, right.double()) < 1e-9


def hopeless() -> dict[str, tuple[Tensor, Tensor]]:
    """Systems in which an inner product of conjugate gradients vanishes, or that hold no numbers."""
    root = math.sqrt(3) - 2
    return {
        "skew": (torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), torch.tensor([1.0, 1.0])),
        "skew and a diagonal of nothing": (torch.tensor([[0.0, 2.0], [-2.0, 0.0]]), torch.tensor([1.0, 0.0])),
        "hollow": (torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1.0, 0.0])),
        "indefinite, no curvature": (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.tensor([root, 1.0])),
        "no solution": (torch.tensor([[1.0, 1.0], [1.0, 1.0]]), torch.tensor([1.0, -1.0])),
        "negative": (-torch.eye(3), torch.tensor([1.0, 2.0, 3.0])),
        "nothing": (torch.zeros(3, 3), torch.ones(3)),
        "not a number": (torch.full((2, 2), torch.nan), torch.ones(2)),
        "right-hand side not a number": (torch.eye(2), torch.tensor([1.0, torch.nan])),
        "infinite": (torch.full((2, 2), torch.inf), torch.ones(2)),
    }


@pytest.mark.parametrize("case", hopeless())
def test_conjugate_gradients_end_where_a_denominator_vanishes(case: str) -> None:
    matrix, right = hopeless()[case]
    x = SOLVERS["cg2"](matrix, right, 1e-10, 50)
    if x is not None:
        assert x.isfinite().all()
        left = scaled(matrix.double(), right.double() - matrix.double() @ x)
        assert float(left.norm()) < float(scaled(matrix.double(), right.double()).norm())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("case", hopeless())
def test_lsmr_gives_numbers_or_nothing(case: str) -> None:
    matrix, right = hopeless()[case]
    x = SOLVERS["lsmr"](matrix, right, 1e-10, 50)
    assert x is None or x.isfinite().all()


@given(size=SIZES, seed=SEEDS, iterations=st.integers(1, 30), skewed=st.booleans())
def test_conjugate_gradients_are_never_worse_than_zero(size: int, seed: int, iterations: int, skewed: bool) -> None:
    matrix, right = random(size, size, seed=seed), random(size, seed=seed + 1)
    matrix = (matrix - matrix.T if skewed else matrix + matrix.T) + 2 * torch.eye(size, dtype=torch.float64)
    x = SOLVERS["cg2"](matrix, right, 1e-10, iterations)
    if x is not None:
        assert x.isfinite().all()
        before, after = scaled(matrix, right), scaled(matrix, right - matrix @ x)
        assert float(after.norm()) <= float(before.norm()) * (1 + 1e-9)


@given(size=st.integers(3, 14), seed=SEEDS)
def test_more_iterations_of_conjugate_gradients_never_leave_more(size: int, seed: int) -> None:
    matrix, right = spd(size, seed, 1e3), random(size, seed=seed + 1)
    found = [SOLVERS["cg2"](matrix, right, 1e-12, iterations) for iterations in range(1, 30)]
    zero = torch.zeros(size, dtype=torch.float64)
    left = [float(scaled(matrix, right - matrix @ (zero if x is None else x)).norm()) for x in found]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(left))
    assert left[-1] < 1e-6 * float(right.norm())
