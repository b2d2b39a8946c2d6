"""How many matrices of a block, F x F in float64, are there at a time."""

from typing import Any

import pytest
import torch
from torch import Tensor

from memory import peak
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.second_order import least_squares
from policyprune.pruning.second_order.elimination import eliminate
from policyprune.pruning.second_order.least_squares import LeastSquares
from policyprune.pruning.second_order.statistics import SecondOrder, resting_place
from policyprune.surgery.equivalence import probe_of, random_mask
from policyprune.tuning.options import Reconstruct
from policyprune.tuning.teacher_student import Lesson

F = 768  # the hidden size is so small that only F x F counts
MATRIX = 8 * F * F


@pytest.fixture(autouse=True)
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """As small beside a matrix as they are beside a large one."""
    monkeypatch.setattr(least_squares, "PIECE", F * F // 16)


@pytest.fixture
def wide(tiny_llama: Any) -> PrunableModel:
    return probe_of(tiny_llama(intermediate_size=F, num_hidden_layers=2))


def batches() -> list[dict[str, Tensor]]:
    return [{"input_ids": torch.randint(5, 300, (8, 16))} for _ in range(2)]


def test_units_go_in_the_matrix_s_own_memory() -> None:
    squares = LeastSquares.of(torch.randn(4, F))
    squares.add(torch.randn(900, F), torch.randn(900, 4))
    expected = eliminate(*squares.damped(0.1), 1, together=16)
    with peak() as memory:
        matrix, right = squares.used_up(0.1)
        found = eliminate(matrix, right, 1, together=16)
    assert memory.most < 0.4 * MATRIX
    assert torch.equal(found.order, expected.order)


def test_a_solution_takes_its_matrix_and_its_factor() -> None:
    squares = LeastSquares.of(torch.randn(4, F))
    squares.add(torch.randn(900, F), torch.randn(900, 4))
    with peak() as memory:
        squares.solve(0.1)
    assert memory.most < 2.2 * MATRIX


def test_statistics_take_the_sums_of_a_layer_and_what_stays(wide: PrunableModel) -> None:
    with peak() as memory:
        SecondOrder.of(wide, batches(), first_token=False)
    stays = 2 * MATRIX // 2
    assert memory.most - stays < 1.6 * MATRIX


def test_a_tuning_takes_two_sums_and_the_matrix_that_units_are_selected_by(wide: PrunableModel) -> None:
    mask, config = random_mask(wide.space), Reconstruct(sequences=8, ridge=[0.01, 0.1, 1.0], residual=0.5)
    with peak() as memory:
        config.fit(wide, mask, Lesson(batches()))
    assert memory.most < 4 * MATRIX


def test_statistics_lie_on_the_cpu_where_they_would_take_much_of_a_gpu(
    wide: PrunableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resting_place(wide).type == "cpu"
    monkeypatch.setattr(PrunableModel, "device", torch.device("cuda"))
    for free, place in ((1 << 34, "cuda"), (1 << 24, "cpu")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 1 << 40))
        assert resting_place(wide).type == place
