"""The table of layer latencies: what is measured, how it is fitted and kept. No real time is asserted."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import small_run, validated
from policyprune.evaluation import latency_table
from policyprune.evaluation.latency import kept_latency
from policyprune.evaluation.latency_table import block_latency, table, widths
from policyprune.models.adapter import adapt
from policyprune.pruning.budget.block_latency import BlockLatency, Timing, fit
from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.budget.selection import select
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import space_of
from policyprune.surgery.shrink import shrink

TRUE = BlockLatency(0.05, {"attention": 0.1, "ffn": 0.15}, {"attention": 0.05, "ffn": 0.5 / 48})
KEY = {"hardware": "Fake (R) CPU / 3 GHz", "torch": "x"}
POINTS = [(4, 48), (2, 48), (4, 20), (0, 48), (4, 0), (0, 0), (1, 30)]


def fake(points: list[tuple[int, int]]) -> list[float]:
    return [TRUE.of(*point) for point in points]


def test_the_fit_finds_an_affine_layer() -> None:
    fitted = fit([Timing(*point, TRUE.of(*point)) for point in POINTS])
    for attention in range(5):
        for ffn in range(0, 49, 7):
            assert fitted.of(attention, ffn) == pytest.approx(TRUE.of(attention, ffn))


def test_a_table_is_measured_once_and_replaced_when_it_is_broken(tmp_path: Path) -> None:
    measured: list[int] = []

    def measure(points: list[tuple[int, int]]) -> list[float]:
        measured.append(len(points))
        return fake(points)

    first = table(tmp_path / "cache", KEY, POINTS, measure)
    assert table(tmp_path / "cache", KEY, POINTS, measure) == first
    assert measured == [len(POINTS)]
    (file,) = (tmp_path / "cache").iterdir()
    assert file.name.startswith("Fake-R-CPU-3-GHz-")
    assert json.loads(file.read_text())["key"] == KEY
    table(tmp_path / "cache", {**KEY, "torch": "y"}, POINTS, measure)
    assert len(measured) == 2
    file.write_text("{")
    assert table(tmp_path / "cache", KEY, POINTS, measure) == first
    assert len(measured) == 3
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_measurement_that_fails_leaves_no_file(tmp_path: Path) -> None:
    def measure(points: list[tuple[int, int]]) -> list[float]:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        table(tmp_path / "cache", KEY, POINTS, measure)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("units", [["attention"], ["ffn"], ["attention", "ffn"], ["layer"]])
@pytest.mark.parametrize("align", [None, 8])
def test_widths_are_of_what_gets_narrower(tiny_llama: Any, units: list[str], align: int | None) -> None:
    attention, ffn = adapt(tiny_llama()).blocks[:2]
    points = widths(attention, ffn, units, align)
    assert points[0] == (4, 48)
    assert {(0, 0), (4, 0)} <= set(points)
    channels = {n for _, n in points} - {0, 48}
    assert bool(channels) == ("ffn" in units)
    assert all(n % align == 0 if align else n % 2 for n in channels)
    assert ({k for k, _ in points} == {0, 4}) == ("attention" not in units)


@pytest.fixture
def config(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("POLICYPRUNE_CACHE", str(tmp_path / "home"))
    return validated(
        *small_run(tiny_checkpoint, tmp_path / "none.txt", "budget=latency", "budget.keep=0.6"),
        *("budget.batch_size=2", "budget.sequence_length=8", "budget.repeats=1"),
    )


def test_the_latency_of_a_model_is_measured_on_random_weights_and_kept(config: Any, tmp_path: Path) -> None:
    first = block_latency(config.model, config.task, config.budget, config.granularity)
    assert first is not None
    assert all(value >= 0 for value in (first.layer, *first.fixed.values(), *first.unit.values()))
    (file,) = (tmp_path / "home" / "latency").iterdir()
    stamp = file.stat().st_mtime_ns
    assert block_latency(config.model, config.task, config.budget, config.granularity) == first
    assert file.stat().st_mtime_ns == stamp
    times = [row["time"] for row in json.loads(file.read_text())["timings"]]
    assert times[0] == 1.0
    assert min(times) > 0


def test_other_budgets_measure_nothing(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_table, "skeleton", lambda *given: pytest.fail("a model is built"))
    config = validated(*small_run(tiny_checkpoint, tmp_path / "none.txt"))
    assert block_latency(config.model, config.task, config.budget, config.granularity) is None


def test_promised_and_achieved_latency_stand_side_by_side(config: Any, tiny_llama: Any) -> None:
    model = tiny_llama()
    adapter = adapt(model)
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(config.budget, adapter, space, TRUE)
    mask = select(torch.rand(space.n), budget)
    smaller = shrink(PrunableModel(model, adapter, space), mask)
    rows = {(name, row[0]): row for name, row in kept_latency(config.budget, model, ("pruned", smaller), budget, mask)}
    promised = rows["pruned", "promised_block_latency_share"]
    views = space.views(mask)
    layers = [TRUE.of(int(views[i, "attention"].sum()), int(views[i, "ffn"].sum())) for i in range(3)]
    assert promised[1] == pytest.approx(sum(layers) / 3)
    assert 0.55 < promised[1] <= 0.6
    assert promised[3]["keep"] == 0.6
    assert {name for name, _ in rows} == {"dense", "pruned"}
    assert rows["pruned", "block_latency_share"][1] > 0
    assert "spread" in rows["pruned", "block_latency_share"][3]
