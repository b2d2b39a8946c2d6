"""Trackers: a failing one never ends a run, and W&B works offline."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness import validated
from policyprune.config.schema import Config
from policyprune.runs.record import Record
from policyprune.tracking import Forgiving, NoTracker, flat, named_results, open_tracker


class Recorder:
    """A tracker that remembers what it was told and raises where it is asked to."""

    def __init__(self, fails_in: str = "") -> None:
        self.fails_in, self.calls = fails_in, []  # type: str, list[str]
        self._tell("init")

    def _tell(self, what: str) -> None:
        self.calls.append(what)
        if what == self.fails_in:
            raise ConnectionError("the server\nis away")

    def log(self, values: Mapping[str, float], step: int, stage: str = "search") -> None:
        self._tell("log")

    def finish(self, summary: Mapping[str, Any], keep_rates: list[dict[str, Any]], failed: bool) -> None:
        self._tell("finish")


def some_record() -> Record:
    """A record with results and keep rates."""
    record = Record(config={"seed": 0, "nested": {"keep": 0.8}}, config_hash="", hardware={})
    record.keep_rates = [{"layer": 0, "kind": "ffn", "kept": 3, "count": 4, "rate": 0.75}]
    record.add("dense", "perplexity", 12.5, "", {"length": 32, "windows": 4})
    record.add("one_shot", "perplexity", 40.0, "", {"length": 32, "scope": "global"})
    record.add("one_shot", "perplexity", 41.0, "", {"length": 32, "scope": "per_layer"})
    record.add("pruned", "parameters", 1000, "", {})
    return record


@pytest.mark.parametrize("fails_in", ["init", "log", "finish"])
def test_a_failing_tracker_is_one_warning(fails_in: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tracker = Forgiving(lambda: Recorder(fails_in))
        for step in range(3):
            tracker.log({"loss": 1.0}, step)
        tracker.finish({}, [], failed=False)
    assert len(caplog.records) == 1
    assert "the server is away" in caplog.text
    assert "the run goes on" in caplog.text


def test_a_failed_tracker_is_left_alone() -> None:
    recorder = Recorder()
    recorder.fails_in = "log"
    tracker = Forgiving(lambda: recorder)
    for step in range(3):
        tracker.log({}, step)
    tracker.finish({}, [], failed=False)
    assert recorder.calls == ["init", "log"]


def test_a_working_tracker_is_told_everything() -> None:
    recorder = Recorder()
    tracker = Forgiving(lambda: recorder)
    tracker.log({"loss": 1.0}, 0)
    tracker.finish({}, [], failed=False)
    assert recorder.calls == ["init", "log", "finish"]


def test_an_error_of_the_run_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr("policyprune.tracking.WandbTracker", lambda **settings: recorder)

    def fail() -> None:
        with open_tracker(validated("tracker=wandb").tracker, some_record(), tmp_path):
            raise RuntimeError("the search broke")

    with pytest.raises(RuntimeError, match="the search broke"):
        fail()
    assert recorder.calls == ["init", "finish"]


def test_no_tracker_needs_no_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it is an error from here on
    with caplog.at_level(logging.WARNING):
        with open_tracker(validated("tracker=none").tracker, some_record(), tmp_path) as tracker:
            tracker.log({"loss": 1.0}, 1)
        assert isinstance(tracker, NoTracker)
        assert not caplog.records
        with open_tracker(validated("tracker=wandb").tracker, some_record(), tmp_path) as tracker:
            tracker.log({"loss": 1.0}, 1)
    assert len(caplog.records) == 1, "wandb was not asked for at all, or complained more than once"


def test_flat_names_are_distinct() -> None:
    record = some_record()
    record.add("dense", "acc", 0.5, "", {"task": "piqa"})
    record.add("dense", "acc", 0.75, "", {"task": "boolq"})
    names = named_results(record)
    assert names == {
        "dense/perplexity/32": 12.5,
        "one_shot/perplexity/global/32": 40.0,
        "one_shot/perplexity/per_layer/32": 41.0,
        "pruned/parameters": 1000,
        "dense/acc/piqa": 0.5,
        "dense/acc/boolq": 0.75,
    }


def test_no_row_overwrites_another() -> None:
    """Two splits, batch sizes, lengths, tasks, limits, and rows that nothing tells apart."""
    record = some_record()
    for split in ("validation_matched", "validation_mismatched"):
        record.add("pruned", "accuracy", 0.5, "", {"split": split, "examples": 10})
    for batch_size in (1, 32):
        for length in (16, 128):
            shape = {"batch_size": batch_size, "length": length, "repeats": 5}
            record.add("pruned", "latency_ratio", 0.8, "", {**shape, "spread": 0.05 + 0.01 * batch_size})
    for limit in (10, None):
        record.add("pruned", "acc", 0.25, "", {"task": "piqa", "split": "validation", "limit": limit})
    for value in (1.0, 2.0):
        record.add("pruned", "novelty", value, "", {"of": "all"})
    names = named_results(record)
    assert {name: value for name, value in names.items() if "/accuracy/" in name} == {
        "pruned/accuracy/validation_matched": 0.5,
        "pruned/accuracy/validation_mismatched": 0.5,
    }
    assert names["pruned/latency_ratio/1/128"] == 0.8
    assert names["pruned/latency_ratio/32/16/spread"] == 0.37
    assert {name for name in names if "/acc/" in name} == {
        "pruned/acc/piqa/validation/limit 10",
        "pruned/acc/piqa/validation/limit None",
    }
    assert sorted(value for name, value in names.items() if "novelty" in name) == [1.0, 2.0]
    assert len(names) == len(record.results) + 4, "every row, and the spread of four"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Config:
    """A W&B config for an offline run, with W&B's own folders out of the way."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    monkeypatch.delenv("WANDB_DIR", raising=False)
    return validated("tracker=wandb")


def test_wandb_offline_run_appears_in_the_folder(
    offline: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with (
        caplog.at_level(logging.WARNING, "policyprune"),
        open_tracker(offline.tracker, some_record(), folder) as tracker,
    ):
        for step in range(1, 4):
            tracker.log({"loss": 1.0 / step, "keep": 0.8}, step)
    assert not [record for record in caplog.records if record.name.startswith("policyprune.tracking")], caplog.text
    sys.modules["wandb"].teardown()  # as at the end of a process; finish() returns just before the file is written
    runs = list((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(runs) == 1
    content = runs[0].read_bytes()
    assert b"search/loss" in content
    assert b"dense/perplexity/32" in content
    assert b"keep_rates" in content


def test_tensorboard_shows_the_curve_the_keep_rates_and_the_metrics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with (
        caplog.at_level(logging.WARNING),
        open_tracker(validated("tracker=tensorboard").tracker, some_record(), tmp_path) as tracker,
    ):
        for step in range(1, 4):
            tracker.log({"loss": 1.0 / step, "keep": 0.8}, step)
    assert not caplog.records
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    curve = [(point.step, point.value) for point in events.Scalars("search/loss")]
    assert curve == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert [(point.step, point.value) for point in events.Scalars("keep_rate/ffn")] == [(0, 0.75)]
    assert events.Scalars("dense/perplexity/32")[-1].value == 12.5
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_hyperparameters_are_plain_values_under_dotted_keys() -> None:
    config = {"seed": 0, "force": False, "budget": {"keep": 0.8, "scope": None}, "task": {"files": ["a", "b"]}}
    assert flat(config) == {"seed": 0, "force": False, "budget.keep": 0.8, "task.files": '["a", "b"]'}
