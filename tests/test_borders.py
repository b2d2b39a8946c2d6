"""The border of the installed command: what is refused is one line and leaves nothing, whenever it is refused."""

import errno
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command_lines import TABLE, replaced
from harness import console
from policyprune import cli
from policyprune.commands import run as pipeline
from policyprune.errors import RunError, UsageError, describe, on_one_line
from records import write_run

PASSED_ON = [row for row in TABLE if "\0" not in "".join(row[0])]  # no process can be given a NUL
CallMain = Callable[..., tuple[int, str]]


@pytest.fixture
def call_main(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], own_logging: None
) -> CallMain:
    """`call_main(*arguments)` runs the command in an empty folder and returns its exit code and stderr."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["policyprune", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capfd.readouterr().err

    return call


@pytest.mark.parametrize(("arguments", "words"), PASSED_ON[::5])
def test_the_installed_command(arguments: list[str], words: str, tmp_path: Path) -> None:
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    began = time.monotonic()
    done = console(*replaced(arguments, tmp_path), cwd=cwd)
    assert time.monotonic() - began < 10
    assert done.returncode == 2
    assert done.stderr.startswith("policyprune: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert not list(cwd.iterdir())


def test_enough_of_the_table_goes_through_the_installed_command() -> None:
    assert len(PASSED_ON[::5]) >= 40


def performing(monkeypatch: pytest.MonkeyPatch, ends: dict[int, Exception]) -> list[Path]:
    """Instead of runs: what ends each seed, or a record; returns the working folders that they had."""
    seen = []

    def run(config: Any, folder: Path) -> None:
        seen.append(Path.cwd())
        if config.seed in ends:
            raise ends[config.seed]
        (folder / "record.json").write_text(json.dumps({"seed": config.seed}))

    monkeypatch.setattr(pipeline, "run", run)
    return seen


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
        (file,) = (own for own in logging.root.handlers if isinstance(own, logging.FileHandler))
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            file.handleError(logging.makeLogRecord({}))
        raise RunError("the disk is full")

    monkeypatch.setattr(pipeline, "run", run)
    assert call_main() == (1, "policyprune: the disk is full\n")


def test_relative_paths_are_those_of_the_command_line(call_main: CallMain, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = performing(monkeypatch, {})
    Path("text.txt").write_text("text")
    assert call_main("hydra.job.chdir=true", "task=text", "task.files=[text.txt]")[0] == 0
    assert seen == [Path.cwd()]


def test_flags_may_stand_anywhere(call_main: CallMain, monkeypatch: pytest.MonkeyPatch) -> None:
    performing(monkeypatch, {})
    assert call_main("seed=0,1", "-m", "budget.keep=0.7,0.8")[0] == 0
    assert len(list(Path("outputs").glob("*/record.json"))) == 4
    assert call_main("budget.keep=0.7", "--cfg", "job", "seed=1")[0] == 0


def test_a_report_that_cannot_be_written_names_the_path(
    call_main: CallMain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    write_run(tmp_path / "runs", "random")
    monkeypatch.setattr("policyprune.report.files.write_whole", refused)
    status, error = call_main("report", str(tmp_path / "runs"))
    assert status == 1
    assert error.startswith("policyprune: ")
    assert error.count("\n") == 1
    assert "report.md: No space left on device" in error


def test_errors_are_told_in_one_line() -> None:
    assert describe(OSError(errno.ENOSPC, "No space left on device")) == "No space left on device"
    assert describe(ValueError("a\n b")) == "ValueError: a b"
    assert on_one_line("a\r\n\tb\x1b[31m \u2028\udcff ä") == r"a b\x1b[31m \udcff ä"
