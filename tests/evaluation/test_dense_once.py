"""The dense model is measured once per weights, test data and protocol."""

from pathlib import Path
from typing import Any

import pytest
import torch

from policyprune.evaluation.dense_once import dense_measures
from policyprune.evaluation.measure import Measure


class Counting:
    """A quality that counts how often it measures."""

    def __init__(self, identity: dict[str, Any] | None) -> None:
        self._identity, self.times = identity, 0

    def identity(self) -> dict[str, Any] | None:
        return self._identity

    def of(self, title: str, model: Any) -> list[Measure]:
        self.times += 1
        return [Measure("perplexity", float(self.times), "", {"length": 8}), Measure("acc", 0.5, "", {}, 0.1)]


def test_the_same_is_not_measured_twice(tiny_llama: Any, tmp_path: Path) -> None:
    model, quality = tiny_llama(), Counting({"windows": "a"})
    first = dense_measures(quality, model, tmp_path, again=False)
    assert dense_measures(quality, model, tmp_path, again=False) == first
    assert quality.times == 1
    assert dense_measures(quality, model, tmp_path, again=True) != first


def test_other_weights_and_other_windows_are(tiny_llama: Any, tmp_path: Path) -> None:
    model, quality = tiny_llama(), Counting({"windows": "a"})
    dense_measures(quality, model, tmp_path, again=False)
    with torch.no_grad():
        next(iter(model.parameters()))[0, 0] += 1e-3
    dense_measures(quality, model, tmp_path, again=False)
    assert quality.times == 2
    other = Counting({"windows": "b"})
    dense_measures(other, model, tmp_path, again=False)
    assert other.times == 1


@pytest.mark.parametrize("content", ["", "{", '[["perplexity"]]'])
def test_a_damaged_file_is_replaced(content: str, tiny_llama: Any, tmp_path: Path) -> None:
    model, quality = tiny_llama(), Counting({"windows": "a"})
    measures = dense_measures(quality, model, tmp_path, again=False)
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    dense_measures(quality, model, tmp_path, again=False)
    assert quality.times == 2
    assert dense_measures(quality, model, tmp_path, again=False) == [measures[0]._replace(value=2.0), measures[1]]


def test_what_needs_outputs_is_always_measured(tiny_llama: Any, tmp_path: Path) -> None:
    model, quality = tiny_llama(), Counting(None)
    for _ in range(2):
        dense_measures(quality, model, tmp_path, again=False)
    assert quality.times == 2
    assert not list(tmp_path.iterdir())
