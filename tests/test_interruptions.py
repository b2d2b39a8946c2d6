"""Runs that are killed, stopped, started twice or out of disk: real processes, each on a tiny random model."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forking import Commands, alive, shared
from harness import paragraphs, small_run, write_corpus
from policyprune.runs.record import Record, read_record

SLOWLY = """
import time
from policyprune.tasks import language_modeling as tasks
loss = tasks.TextTask.loss
def slow(self, model, rows):
    time.sleep(0.02)
    return loss(self, model, rows)
tasks.TextTask.loss = slow
"""
STEPS = 12
OPTIMIZERS = {
    "policy_gradient": ["optimizer.baseline=residual", f"optimizer.steps={STEPS}", "optimizer.batch_size=4"],
    "straight_through": [f"optimizer.steps={STEPS}", "optimizer.batch_size=4", "importance=magnitude"],
    "ppo": [
        f"optimizer.iterations={STEPS}",
        "optimizer.episodes=2",
        "optimizer.chunk=16",
        "importance=magnitude",
    ],
}
RESULT = ("mask.safetensors", "curve.jsonl")


@pytest.fixture(scope="module")
def commands() -> Commands:
    return shared()


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Callable[..., list[str]]:
    """Of a run in the folder `run`."""
    corpus = write_corpus(tmp_path_factory.mktemp("corpus") / "stories.txt", paragraphs(150))

    def make(optimizer: str, *overrides: str) -> list[str]:
        settings = [f"optimizer={optimizer}", *OPTIMIZERS[optimizer], "evaluation=none", "hydra.run.dir=run"]
        return small_run(tiny_checkpoint, corpus, *settings, "safety.save_steps=2", *overrides)

    return make


@pytest.fixture(scope="module")
def uninterrupted(
    commands: Commands, arguments: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[dict[str, bytes], float]]:
    """The files of an uninterrupted run and its seconds, by optimizer."""
    found = {}
    for optimizer in OPTIMIZERS:
        cwd = tmp_path_factory.mktemp("uninterrupted")
        began = time.perf_counter()
        assert commands.run(*arguments(optimizer), cwd=cwd, first=SLOWLY) == 0, (cwd / "stderr").read_text()
        found[optimizer] = (result(cwd), time.perf_counter() - began)
    return found


def result(cwd: Path) -> dict[str, bytes]:
    files = {name: (cwd / "run" / name).read_bytes() for name in RESULT}
    return {**files, "calibration": json.dumps(record_of(cwd).calibration).encode()}


def record_of(cwd: Path) -> Record:
    record = read_record(cwd / "run")
    assert record is not None
    return record


def steps_in(cwd: Path) -> int:
    curve = cwd / "run" / "curve.jsonl"
    return curve.read_bytes().count(b"\n") if curve.exists() else 0


def wait_for(reached: Callable[[], Any], pid: int) -> None:
    deadline = time.perf_counter() + 60
    while not reached():
        assert alive(pid), "the run ended too early"
        assert time.perf_counter() < deadline
        time.sleep(0.002)


def same_result(cwd: Path, expected: dict[str, bytes]) -> None:
    assert result(cwd) == expected
    steps = [json.loads(line)["step"] for line in expected["curve.jsonl"].splitlines()]
    assert steps == list(range(1, STEPS + 1))
    assert not list((cwd / "run").glob("*.state*")), "a finished run needs no state"
    assert not (cwd / "run" / ".lock").exists()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("at", [(1,), (3, 8, STEPS)])
def test_a_search_that_is_killed_ends_as_if_it_had_not_been(
    commands: Commands, arguments: Any, uninterrupted: Any, tmp_path: Path, optimizer: str, at: tuple[int, ...]
) -> None:
    for step in at:
        pid = commands.start(*arguments(optimizer), cwd=tmp_path, first=SLOWLY)
        wait_for(lambda: steps_in(tmp_path) >= step, pid)  # noqa: B023
        os.kill(pid, signal.SIGKILL)
        assert commands.wait(pid) == -signal.SIGKILL
        assert record_of(tmp_path).status == "running"
    assert commands.run(*arguments(optimizer), cwd=tmp_path) == 0, (tmp_path / "stderr").read_text()
    same_result(tmp_path, uninterrupted[optimizer][0])
    resumed = record_of(tmp_path).search["resumed"]
    assert resumed == sorted(resumed)
    assert (len(resumed) > 0) == (max(at) > 2)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_ten_kills_at_random_moments(
    commands: Commands, arguments: Any, uninterrupted: Any, tmp_path: Path, optimizer: str
) -> None:
    expected, seconds = uninterrupted[optimizer]
    chance, kills, rounds = random.Random(7), 0, 0
    while kills < 10:
        rounds += 1
        cwd = tmp_path / str(rounds)
        cwd.mkdir()
        for _ in range(3):
            pid = commands.start(*arguments(optimizer), cwd=cwd, first=SLOWLY)
            time.sleep(chance.uniform(0.1, 0.9) * seconds)
            os.kill(pid, signal.SIGKILL)
            kills += commands.wait(pid) == -signal.SIGKILL
        began = time.perf_counter()
        assert commands.run(*arguments(optimizer), cwd=cwd) == 0
        seconds = min(seconds, time.perf_counter() - began)  # the first run also read everything from disk
        same_result(cwd, expected)


def test_a_kill_while_the_checkpoint_is_written_leaves_nothing_for_ever(
    commands: Commands, arguments: Any, uninterrupted: Any, tmp_path: Path
) -> None:
    midway = """
import os, signal
from transformers import PreTrainedModel
save = PreTrainedModel.save_pretrained
def killed(self, folder, **options):
    save(self, folder, **options)
    if "rehearsal" not in str(folder):
        os.kill(os.getpid(), signal.SIGKILL)
PreTrainedModel.save_pretrained = killed
"""
    assert commands.run(*arguments("policy_gradient"), cwd=tmp_path, first=midway) == -signal.SIGKILL
    (left,) = (tmp_path / "run").glob(".policyprune-checkpoint-*.tmp/new/model.safetensors")
    assert left.stat().st_size > 100_000
    assert commands.run(*arguments("policy_gradient"), cwd=tmp_path) == 0
    same_result(tmp_path, uninterrupted["policy_gradient"][0])
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_ends_the_run(
    commands: Commands, arguments: Any, uninterrupted: Any, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    never = ["safety.save_steps=null", "safety.save_seconds=null"]
    pid = commands.start(*arguments("policy_gradient", *never), cwd=tmp_path, first=SLOWLY)
    wait_for(lambda: steps_in(tmp_path) >= 3, pid)
    os.kill(pid, number)
    assert commands.wait(pid) == code
    stopped = record_of(tmp_path)
    assert (stopped.status, stopped.error) == ("interrupted", f"Interrupted: interrupted by {number.name}")
    assert f"interrupted by {number.name}, the same command goes on" in (tmp_path / "run" / "run.log").read_text()
    assert "Traceback" not in (tmp_path / "stdout").read_text() + (tmp_path / "stderr").read_text()
    lines = steps_in(tmp_path)
    assert commands.run(*arguments("policy_gradient"), cwd=tmp_path) == 0
    same_result(tmp_path, uninterrupted["policy_gradient"][0])
    assert record_of(tmp_path).search["resumed"] == [lines], "steps were lost"


def test_a_damaged_state_is_told_of_and_the_one_before_is_used(
    commands: Commands, arguments: Any, uninterrupted: Any, tmp_path: Path
) -> None:
    pid = commands.start(*arguments("policy_gradient"), cwd=tmp_path, first=SLOWLY)
    wait_for(lambda: steps_in(tmp_path) >= 7, pid)
    os.kill(pid, signal.SIGKILL)
    commands.wait(pid)
    state = tmp_path / "run" / "search.state"
    state.write_bytes(state.read_bytes()[:-9])
    assert commands.run(*arguments("policy_gradient"), cwd=tmp_path) == 0
    same_result(tmp_path, uninterrupted["policy_gradient"][0])
    log = (tmp_path / "run" / "run.log").read_text()
    assert log.count("search.state is damaged (checksum) and is not used") == 1
    assert record_of(tmp_path).search["resumed"][0] in (4, 6)


def test_a_second_process_on_the_folder_is_refused(commands: Commands, arguments: Any, tmp_path: Path) -> None:
    pid = commands.start(*arguments("policy_gradient"), cwd=tmp_path, first=SLOWLY)
    wait_for(lambda: steps_in(tmp_path) >= 1, pid)
    os.kill(pid, signal.SIGSTOP)  # or it may have finished before the second one begins
    elsewhere = tmp_path / "second"
    elsewhere.mkdir()
    own = [*arguments("policy_gradient"), f"hydra.run.dir={tmp_path / 'run'}"]
    assert commands.run(*own, cwd=elsewhere) == 2
    told = (elsewhere / "stderr").read_text()
    assert told.startswith("policyprune: hydra.run.dir: ")
    assert "in use by another process" in told
    assert told.count("\n") == 1
    os.kill(pid, signal.SIGCONT)
    assert commands.wait(pid) == 0
    assert record_of(tmp_path).status == "finished"


@pytest.mark.parametrize(("largest", "lost"), [(450_000, "checkpoint"), (2_000, "importance")])
def test_a_full_disk_is_one_line_and_costs_nothing(
    commands: Commands, arguments: Any, uninterrupted: Any, tmp_path: Path, largest: int, lost: str
) -> None:
    assert commands.run(*arguments("policy_gradient"), cwd=tmp_path, largest_file=largest) == 1
    told, complaint = (tmp_path / "stdout").read_text(), (tmp_path / "stderr").read_text()
    assert "Traceback" not in told + complaint
    assert "File too large" in told.splitlines()[-1]
    assert complaint.splitlines()[-1].startswith("policyprune: ")
    assert commands.run(*arguments("policy_gradient"), cwd=tmp_path) == 0
    same_result(tmp_path, uninterrupted["policy_gradient"][0])
    assert record_of(tmp_path).search["resumed"] == ([STEPS] if lost == "checkpoint" else [])


def test_too_many_losses_that_are_no_numbers_end_the_run(
    commands: Commands, arguments: Any, uninterrupted: Any, tmp_path: Path
) -> None:
    broken = """
import torch
from policyprune.tasks import language_modeling as tasks
loss = tasks.TextTask.loss
def sometimes(self, model, rows):
    return torch.where(rows >= 32, torch.nan, loss(self, model, rows))
tasks.TextTask.loss = sometimes
"""
    few = arguments("policy_gradient", "safety.max_skipped=3", "importance=magnitude")
    assert commands.run(*few, cwd=tmp_path, first=broken) == 1
    failed = record_of(tmp_path)
    assert failed.status == "failed"
    assert "more than safety.max_skipped=3" in str(failed.error)
    assert "Traceback" not in (tmp_path / "stdout").read_text() + (tmp_path / "stderr").read_text()
    many = arguments("policy_gradient", "safety.max_skipped=1000", "importance=magnitude")
    assert commands.run(*many, cwd=tmp_path, first=broken) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "curve.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert record_of(tmp_path).search["skipped"] == sum(row["skipped"] for row in rows) > 3
