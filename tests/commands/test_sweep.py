"""The verb `sweep` on a tiny model: skipping, going on, failing, launchers."""

import os
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness import SMALL_EVALUATION, SMALL_SEARCH, clean_environment, paragraphs, small_run, write_corpus
from policyprune.commands import sweep as sweeping
from policyprune.commands import verbs
from policyprune.errors import UsageError
from policyprune.runs.record import Record, read_record

SWEEP = "offline/ablation/baseline"
FOLDER = Path("outputs/sweeps") / SWEEP
QUICK = ["method=straight_through", "evaluation.latency.repeats=0", "optimizer.steps=2", "seed=0"]
Sweep = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "stories.txt", paragraphs(150))


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str]]:
    """Calls of the report, which writes a table of one line here."""
    calls = []

    def report_folder(folder: Path, table: str) -> list[Path]:
        calls.append((folder, table))
        path = folder / "table.md"
        path.write_text("| the table |\n")
        return [path]

    module = types.ModuleType("policyprune.commands.report")
    module.report_folder = report_folder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "policyprune.commands.report", module)
    return calls


@pytest.fixture
def sweep(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    reported: list[tuple[Path, str]],
    own_logging: None,
) -> Sweep:
    """`sweep(*arguments)` runs the verb in an empty folder and returns its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["policyprune"])

    def call(*arguments: str) -> tuple[int, str]:
        capfd.readouterr()
        status = verbs.sweep(list(arguments))
        printed = capfd.readouterr()
        print(printed.out, printed.err)
        return status, printed.out

    return call


@pytest.fixture
def workers() -> Iterator[None]:
    """Processes that no other test has used: they would work in its folder."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    yield
    loky = pytest.importorskip("joblib.externals.loky")
    loky.get_reusable_executor().shutdown(wait=True)


def axes(checkpoint: Path, corpus: Path, *more: str) -> list[str]:
    return small_run(checkpoint, corpus, *SMALL_SEARCH, *SMALL_EVALUATION, *QUICK, *more)


def records() -> dict[str, Record]:
    read = {path.parent.name: read_record(path.parent) for path in FOLDER.glob("*/record.json")}
    return {name: record for name, record in read.items() if record is not None}


def test_failed_runs_do_not_stop_the_others_and_are_the_only_ones_repeated(
    sweep: Sweep, tmp_path: Path, tiny_checkpoint: Path, corpus: Path, reported: list[tuple[Path, str]]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    weights = load_file(broken / "model.safetensors")
    save_file(
        {name: torch.full_like(weight, torch.nan) for name, weight in weights.items()},
        broken / "model.safetensors",
        {"format": "pt"},
    )
    arguments = axes(tiny_checkpoint, corpus, f"model.source={broken},{tiny_checkpoint}")
    arguments.append("optimizer.baseline=none,residual")

    status, printed = sweep(SWEEP, *arguments)
    assert status == 1
    first = records()
    assert sorted(record.status for record in first.values()) == ["failed", "failed", "finished", "finished"]
    assert "4 jobs: 2 failed, 2 finished" in printed
    for name, record in first.items():
        if record.status == "failed":
            assert f"failed: {FOLDER / name}: {record.error}" in printed
        assert record.command[1:3] == ["sweep", SWEEP]
        assert {record.config["method"]} <= {"baseline none", "baseline residual"}
    assert reported == [(FOLDER, SWEEP)]
    assert "| the table |" in printed
    assert str(FOLDER / "table.md") in printed

    status, printed = sweep(SWEEP, *arguments, "--dry-run")
    assert status == 0
    assert f"4 jobs in {FOLDER}: 2 failed, 2 finished" in printed
    assert len(reported) == 1

    times = {path: path.stat().st_mtime_ns for path in FOLDER.glob("*/record.json")}
    shutil.copy(tiny_checkpoint / "model.safetensors", broken / "model.safetensors")
    status, printed = sweep(SWEEP, *arguments)
    assert status == 0
    assert "4 jobs: 2 finished, 2 skipped" in printed
    repeated = {path.parent.name for path, before in times.items() if path.stat().st_mtime_ns != before}
    assert repeated == {name for name, record in first.items() if record.status == "failed"}

    script = (
        "import sys, types\n"
        "reporting = sys.modules['policyprune.commands.report'] = types.ModuleType('policyprune.commands.report')\n"
        "reporting.report_folder = lambda folder, table: [folder / 'table.md']\n"
        "from policyprune.commands import verbs\n"
        f"status = verbs.sweep({[SWEEP, *arguments]!r})\n"
        "assert 'torch' not in sys.modules, 'a finished sweep needs no torch'\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", script], env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "4 jobs: 4 skipped" in done.stdout


def test_an_error_before_a_run_has_its_record_is_recorded(sweep: Sweep, tiny_checkpoint: Path, corpus: Path) -> None:
    arguments = axes(tiny_checkpoint, corpus, "optimizer.baseline=none", "budget=params", "budget.keep=0.001")
    status, printed = sweep(SWEEP, *arguments)
    assert status == 1
    ((name, record),) = records().items()
    assert record.status == "failed"
    assert (record.error or "").startswith("UsageError: budget.keep: 0.001")
    assert f"failed: {FOLDER / name}: {record.error}" in printed


def test_a_signal_ends_the_sweep_and_it_still_tells(
    sweep: Sweep,
    tiny_checkpoint: Path,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from policyprune.commands import run as pipeline

    monkeypatch.setattr(pipeline, "check", lambda config: os.kill(os.getpid(), signal.SIGINT))
    arguments = axes(tiny_checkpoint, corpus, "optimizer.baseline=none,residual")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs that ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            sweep(SWEEP, *arguments)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "2 jobs: 2 new" in capfd.readouterr().out


def test_a_launcher_that_breaks_down_is_one_line(
    sweep: Sweep, tiny_checkpoint: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> None:
        raise RuntimeError("a worker\ndied")

    monkeypatch.setattr(sweeping, "launch", broken)
    status, printed = sweep(SWEEP, *axes(tiny_checkpoint, corpus, "optimizer.baseline=none,residual"))
    assert status == 1
    assert "2 jobs: 2 new" in printed


def test_workers_of_a_multirun_report_what_ended_a_run(
    tiny_checkpoint: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own_logging: None,
    workers: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["policyprune"])
    axes = ["-m", "budget=params", "budget.keep=0.9,0.001", "optimizer=one_shot", "hydra/launcher=workers"]
    with pytest.raises(UsageError, match=r"budget\.keep: 0\.001 .*\(in the job budget=params budget\.keep=0\.001 "):
        verbs.run([*axes, *small_run(tiny_checkpoint, corpus, *SMALL_EVALUATION, "evaluation.latency.repeats=0")])
    (folder,) = (path for path in Path("outputs").iterdir() if path.is_dir())
    record = read_record(folder)
    assert record is not None
    assert record.status == "finished"


def test_workers(sweep: Sweep, tiny_checkpoint: Path, corpus: Path, workers: None) -> None:
    """In processes of their own: the summary can only come from the records."""
    arguments = axes(tiny_checkpoint, corpus, "optimizer.baseline=none", "budget=params", "budget.keep=0.9,0.001")
    status, printed = sweep(SWEEP, *arguments, "hydra/launcher=workers")
    assert status == 1
    assert "2 jobs: 1 finished, 1 failed" in printed
    assert sorted(record.status for record in records().values()) == ["failed", "finished"]
