"""A search on two processes against one: real processes that talk by gloo, on a tiny random model."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forking import Commands, alive, shared
from harness import clean_environment, paragraphs, small_run, validated, write_corpus
from policyprune.errors import UsageError
from policyprune.runs.record import read_record

RESULT = ("mask.safetensors", "curve.jsonl")
SEARCHES = {
    "policy_gradient": ["optimizer.steps=6", "optimizer.batch_size=4", "optimizer.masks=3"],
    "evolution": ["optimizer.steps=3", "optimizer.population=5", "optimizer.parents=2"],
    "ppo": ["optimizer.iterations=2", "optimizer.episodes=2", "optimizer.chunk=16", "importance=magnitude"],
}
SLOWLY = """
import time
from policyprune.tasks import language_modeling as tasks
loss = tasks.TextTask.loss
def slow(self, model, rows):
    time.sleep(0.1)
    return loss(self, model, rows)
tasks.TextTask.loss = slow
"""
FAILING = """
from policyprune.tasks import language_modeling as tasks
def fail(self, model, rows):
    raise MemoryError("no room\\nat all")
tasks.TextTask.loss = fail
"""
OTHER_DATA = """
from policyprune.search import worker
build = worker.build
def other(*asked):
    task = build(*asked)
    task.protocol["test_text"] = "another"
    return task
worker.build = other
"""


class Group:
    """Starts the command on several ranks that meet at a free port."""

    def __init__(self, commands: Commands, root: Path, arguments: list[str]) -> None:
        self.commands, self.root, self.arguments = commands, root, [*arguments, f"hydra.run.dir={root / 'run'}"]

    def start(self, size: int, first: dict[int, str] | None = None) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pids = []
        for rank in range(size):
            cwd = self.root / f"rank{rank}"
            cwd.mkdir(parents=True, exist_ok=True)
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1"}
            variables = {name: str(value) for name, value in {**place, "MASTER_PORT": port}.items()} if size > 1 else {}
            before = f"os.environ.update({variables!r})\n{(first or {}).get(rank, '')}"
            pids.append(self.commands.start(*self.arguments, cwd=cwd, first=before))
        return pids

    def wait(self, pids: list[int]) -> list[int]:
        return [self.commands.wait(pid) for pid in pids]

    def errors(self, rank: int) -> str:
        return (self.root / f"rank{rank}" / "stderr").read_text()

    def result(self) -> dict[str, bytes]:
        return {name: (self.root / "run" / name).read_bytes() for name in RESULT}


@pytest.fixture(scope="module")
def commands() -> Commands:
    return shared()


@pytest.fixture(scope="module")
def make(commands: Commands, tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Callable[..., Group]:
    corpus = write_corpus(tmp_path_factory.mktemp("corpus") / "stories.txt", paragraphs(150))

    def group(search: str, *overrides: str) -> Group:
        settings = [f"optimizer={search}", *SEARCHES[search], "evaluation=none", "export=none", *overrides]
        arguments = small_run(tiny_checkpoint, corpus, *settings, "evaluation.fresh_process=false")
        return Group(commands, tmp_path_factory.mktemp("group"), arguments)

    return group


def wait_for(reached: Callable[[], Any], pid: int) -> None:
    deadline = time.perf_counter() + 60
    while not reached():
        assert alive(pid), "the run ended too early"
        assert time.perf_counter() < deadline
        time.sleep(0.005)


def steps_in(group: Group) -> int:
    curve = group.root / "run" / "curve.jsonl"
    return curve.read_bytes().count(b"\n") if curve.exists() else 0


@pytest.mark.parametrize("search", SEARCHES)
def test_two_processes_find_what_one_finds(make: Any, search: str) -> None:
    one, two = make(search), make(search)
    pids = [*one.start(1), *two.start(2)]
    assert one.wait(pids) == [0, 0, 0], two.errors(0)
    assert two.result() == one.result()
    record = read_record(two.root / "run")
    assert record is not None
    assert (record.status, record.search["processes"]) == ("finished", 2)
    assert two.errors(1) == ""
    assert [path.name for path in (two.root / "rank1").iterdir() if path.stat().st_size] == []


def test_a_search_of_two_that_is_stopped_goes_on_with_one(make: Any) -> None:
    whole, stopped = make("policy_gradient"), make("policy_gradient", "safety.save_steps=1")
    assert whole.wait(whole.start(1)) == [0]
    pids = stopped.start(2, {0: SLOWLY})
    wait_for(lambda: steps_in(stopped) >= 2, pids[0])
    for pid in pids:  # as a launcher does
        os.kill(pid, signal.SIGTERM)
    assert stopped.wait(pids) == [143, 0]
    assert 2 <= steps_in(stopped) < 6
    assert stopped.wait(stopped.start(1)) == [0]
    assert stopped.result() == whole.result()


@pytest.mark.parametrize(
    ("first", "words"),
    [({1: FAILING}, "rank 1 of 2 failed: MemoryError: no room at all"), ({1: OTHER_DATA}, "not the same as on rank 0")],
)
def test_a_rank_that_fails_ends_all_with_one_line(make: Any, first: dict[int, str], words: str) -> None:
    group = make("policy_gradient")
    assert group.wait(group.start(2, first)) == [1, 1]
    told = [line for line in group.errors(0).splitlines() if "failed" in line]
    assert len(told) == 1
    assert words in told[0]
    assert "Traceback" not in group.errors(0)
    assert group.errors(1) == ""
    record = read_record(group.root / "run")
    assert record is not None
    assert (record.status, words in str(record.error)) == ("failed", True)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_is_killed_ends_all(make: Any, killed: int) -> None:
    group = make("policy_gradient")
    pids = group.start(2, {0: SLOWLY})
    wait_for(lambda: steps_in(group) >= 1, pids[0])
    os.kill(pids[killed], signal.SIGKILL)
    codes = group.wait(pids)
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] == 1
    assert "Traceback" not in group.errors(1 - killed)
    if killed == 1:
        assert "another process of this run was lost" in group.errors(0)


def test_a_finished_run_needs_no_others(make: Any) -> None:
    group = make("policy_gradient")
    assert group.wait(group.start(1)) == [0]
    assert group.wait(group.start(2)) == [0, 0]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["optimizer=one_shot"], "optimizer:"),
        (["optimizer=gumbel"], "optimizer:"),
        (["optimizer=policy_gradient", "optimizer.masks=2"], "optimizer.masks:"),
        (["optimizer=policy_gradient", "optimizer.masks=4", "model.device_map=auto"], "model.device_map:"),
    ],
)
def test_what_processes_cannot_share_is_refused(
    overrides: list[str], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated(*overrides)
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"^{key}"):
        validated(*overrides)


@pytest.mark.slow
def test_torchrun(make: Any) -> None:
    one, two = make("policy_gradient"), make("policy_gradient")
    assert one.wait(one.start(1)) == [0]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "policyprune"]
    done = subprocess.run(
        [*torchrun, *two.arguments], cwd=two.root, env=clean_environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert two.result() == one.result()


@pytest.mark.parametrize(
    ("gpus", "here", "everywhere", "backend"),
    [
        (0, "2", "2", "gloo"),
        (2, "2", "8", "cpu:gloo,cuda:nccl"),
        (1, "2", "2", "gloo"),  # NCCL refuses to share a GPU
        (1, None, "2", "gloo"),  # started without torchrun, so maybe on one machine
    ],
)
def test_nccl_is_for_processes_with_a_gpu_each(
    gpus: int, here: str | None, everywhere: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    import torch.distributed as dist

    from policyprune.search.team import Team

    for name, value in {"RANK": "0", "WORLD_SIZE": everywhere, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    if here is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    chosen: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: chosen.append(backend))
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: int(everywhere))
    Team()
    assert chosen == [backend]
