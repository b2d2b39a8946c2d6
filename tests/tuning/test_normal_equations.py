"""The normal equations of a block against the matrix that they stand for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from policyprune.tuning.least_squares import NormalEquations

WIDTHS = pytest.mark.parametrize("width", [1, 5])
UNITS, OUT = 4, 6
TOKENS = (7, 3, 12)  # of the batches


def batches(width: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs (tokens, F) and targets (tokens, d)."""
    return [(torch.randn(tokens, UNITS * width), torch.randn(tokens, OUT)) for tokens in TOKENS]


def explicit(weight: Tensor, width: int, seen: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A (tokens * d, units), column by column, and b, float64."""
    x, target = (torch.cat(part).double() for part in zip(*seen, strict=True))
    columns = []
    for unit in range(weight.shape[1] // width):
        own = slice(unit * width, (unit + 1) * width)
        columns.append((x[:, own] @ weight.double()[:, own].T).flatten())
    return torch.stack(columns, 1), target.flatten()


def filled(weight: Tensor, width: int, seen: list[tuple[Tensor, Tensor]]) -> NormalEquations:
    equations = NormalEquations(weight, width)
    for x, target in seen:
        equations.add(x, target)
    return equations


@WIDTHS
def test_matrix_and_right_hand_side_are_those_of_the_columns(width: int) -> None:
    weight, seen = torch.randn(OUT, UNITS * width), batches(width)
    a, b = explicit(weight, width, seen)
    matrix, right = filled(weight, width, seen).system()
    assert matrix.shape == (UNITS, UNITS)
    assert (matrix.dtype, right.dtype) == (torch.float64, torch.float64)
    torch.testing.assert_close(matrix, a.T @ a, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(right, a.T @ b, rtol=1e-5, atol=1e-4)


@WIDTHS
@given(values=st.lists(st.floats(-3, 3), min_size=UNITS, max_size=UNITS))
def test_error_is_the_squared_distance_to_the_target(width: int, values: list[float]) -> None:
    torch.manual_seed(1)
    weight, seen = torch.randn(OUT, UNITS * width), batches(width)
    a, b = explicit(weight, width, seen)
    scales = torch.tensor(values, dtype=torch.float64)
    expected = float((a @ scales - b).square().sum())
    assert filled(weight, width, seen).error(scales) == pytest.approx(expected, rel=1e-5, abs=1e-3)


@WIDTHS
def test_batches_add_up(width: int) -> None:
    weight, seen = torch.randn(OUT, UNITS * width), batches(width)
    one = filled(weight, width, [tuple(torch.cat(part) for part in zip(*seen, strict=True))])  # type: ignore[list-item]
    many = filled(weight, width, seen)
    for left, right in zip(one.system(), many.system(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)
    assert many.error(torch.ones(UNITS).double()) == pytest.approx(one.error(torch.ones(UNITS).double()), rel=1e-5)


@WIDTHS
def test_half_precision_inputs_are_summed_in_full_precision(width: int) -> None:
    weight = torch.randn(OUT, UNITS * width).bfloat16()
    seen = [(x.bfloat16(), target.bfloat16()) for x, target in batches(width)]
    a, b = explicit(weight.float(), width, [(x.float(), target.float()) for x, target in seen])
    matrix, right = filled(weight, width, seen).system()
    torch.testing.assert_close(matrix, a.T @ a, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(right, a.T @ b, rtol=1e-5, atol=1e-4)
