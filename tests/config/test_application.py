"""Runs as Hydra starts them: what is refused or fails is one line, and what is refused leaves nothing."""

import errno
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policyprune.commands import run as pipeline
from policyprune.errors import RunError, UsageError

CallMain = Callable[..., tuple[int, str]]


def performing(monkeypatch: pytest.MonkeyPatch, ends: dict[int, Exception]) -> list[Path]:
    """Instead of runs: what ends each seed, or a record; returns the working folders that they had."""
    folders = []

    def run(config: Any, folder: Path) -> None:
        folders.append(Path.cwd())
        if config.seed in ends:
            raise ends[config.seed]
        (folder / "record.json").write_text(json.dumps({"seed": config.seed}))

    monkeypatch.setattr(pipeline, "run", run)
    return folders


def test_a_refused_run_leaves_nothing(call_main: CallMain, monkeypatch: pytest.MonkeyPatch) -> None:
    performing(monkeypatch, {0: UsageError("model.source: wrong\nweights")})
    assert call_main() == (2, "policyprune: model.source: wrong weights\n")
    assert not list(Path().iterdir())
    assert call_main("hydra.output_subdir=.hydra", "hydra.run.dir=a/b/c")[0] == 2
    assert not list(Path().iterdir())


def test_a_refused_run_leaves_what_was_there(call_main: CallMain, monkeypatch: pytest.MonkeyPatch) -> None:
    performing(monkeypatch, {0: UsageError("no")})
    Path("mine/.hydra").mkdir(parents=True)
    Path("mine/run.log").write_text("my own\n")
    assert call_main("hydra.run.dir=mine", "hydra.output_subdir=.hydra")[0] == 2
    assert Path("mine/run.log").read_text().startswith("my own\n")
    assert Path("mine/.hydra").is_dir()


def test_a_refused_job_does_not_stop_the_others(call_main: CallMain, monkeypatch: pytest.MonkeyPatch) -> None:
    performing(monkeypatch, {1: UsageError("task.files: no rows")})
    status, error = call_main("-m", "seed=0,1,2")
    assert status == 2
    assert error == "policyprune: task.files: no rows (in the job seed=1)\n"
    records = sorted(json.loads(path.read_text())["seed"] for path in Path("outputs").glob("*/record.json"))
    assert records == [0, 2]
    assert len([path for path in Path("outputs").iterdir() if path.is_dir()]) == 2


def test_a_multirun_of_which_all_is_refused_leaves_nothing(
    call_main: CallMain, monkeypatch: pytest.MonkeyPatch
) -> None:
    performing(monkeypatch, {seed: UsageError("no") for seed in range(2)})
    status, error = call_main("seed=0,1", "-m")
    assert (status, error.count("\n")) == (2, 2)
    assert not list(Path().iterdir())


def test_what_ends_a_run_is_one_line_without_hydras(call_main: CallMain, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/full/model.safetensors")
    performing(monkeypatch, {0: RunError("masks: all losses\nare NaN"), 1: full, 2: KeyError("bug")})
    assert call_main("seed=0") == (1, "policyprune: masks: all losses are NaN\n")
    assert call_main("seed=1") == (1, "policyprune: /full/model.safetensors: No space left on device\n")
    assert call_main("seed=2") == (1, "policyprune: KeyError: 'bug'\n")
    status, error = call_main("-m", "seed=0,3,1")
    assert status == 1
    assert all(line.startswith("policyprune: ") for line in error.splitlines())


def test_a_log_that_cannot_be_written_is_no_traceback(call_main: CallMain, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(config: Any, folder: Path) -> None:
        (file,) = (handler for handler in logging.root.handlers if isinstance(handler, logging.FileHandler))
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            file.handleError(logging.makeLogRecord({}))
        raise RunError("the disk is full")

    monkeypatch.setattr(pipeline, "run", run)
    assert call_main() == (1, "policyprune: the disk is full\n")


def test_relative_paths_are_those_of_the_command_line(call_main: CallMain, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = performing(monkeypatch, {})
    Path("text.txt").write_text("text")
    assert call_main("hydra.job.chdir=true", "task=text", "task.files=[text.txt]")[0] == 0
    assert folders == [Path.cwd()]


def test_flags_may_stand_anywhere(call_main: CallMain, monkeypatch: pytest.MonkeyPatch) -> None:
    performing(monkeypatch, {})
    assert call_main("seed=0,1", "-m", "budget.keep=0.7,0.8")[0] == 0
    assert len(list(Path("outputs").glob("*/record.json"))) == 4
    assert call_main("budget.keep=0.7", "--cfg", "job", "seed=1")[0] == 0
