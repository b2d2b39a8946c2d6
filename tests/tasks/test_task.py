"""What a stage looked at, counted."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from policyprune.tasks.task import CalibrationUsage


@dataclass
class Some:
    """A task of four sequences whose loss is their length."""

    lengths: Tensor = field(default_factory=lambda: torch.tensor([5, 6, 7, 8]))
    protocol: dict[str, Any] = field(default_factory=dict)

    def inputs(self, rows: Tensor) -> dict[str, Tensor]:
        return {"rows": rows}

    def loss(self, model: Any, rows: Tensor) -> Tensor:
        return self.lengths[rows].float()


@pytest.fixture
def usage() -> CalibrationUsage:
    return CalibrationUsage(Some())


def test_a_sequence_counts_once_however_often_it_was_looked_at(usage: CalibrationUsage) -> None:
    with torch.no_grad():
        assert usage.loss(None, torch.tensor([0, 2])).tolist() == [5, 7]  # type: ignore[arg-type]
        assert usage.inputs(torch.tensor([2, 3]))["rows"].tolist() == [2, 3]
    assert usage.taken() == {"sequences": 3, "tokens": 5 + 7 + 8, "backpropagation": False}


def test_each_stage_is_counted_by_itself(usage: CalibrationUsage) -> None:
    usage.loss(None, torch.tensor([0]))  # type: ignore[arg-type]
    assert usage.taken() == {"sequences": 1, "tokens": 5, "backpropagation": True}
    assert usage.taken() == {"sequences": 0, "tokens": 0, "backpropagation": False}


def test_inputs_alone_are_no_back_propagation(usage: CalibrationUsage) -> None:
    usage.inputs(torch.tensor([1]))
    assert usage.taken()["backpropagation"] is False


def test_counting_goes_on_in_another_process(usage: CalibrationUsage) -> None:
    usage.loss(None, torch.tensor([0, 1]))  # type: ignore[arg-type]
    other, state = CalibrationUsage(Some()), usage.state()
    usage.inputs(torch.tensor([3]))
    other.load(state)
    other.inputs(torch.tensor([1, 2]))
    assert other.taken() == {"sequences": 3, "tokens": 5 + 6 + 7, "backpropagation": True}
