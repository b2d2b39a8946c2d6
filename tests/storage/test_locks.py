"""One process at a time: refused or waiting while another one holds a lock, and free when that is killed."""

import errno
import fcntl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from policyprune.storage.files import NO_LOCKS, cache_folder, hold, hold_where_possible, made_once

HOLD = """
import sys
from pathlib import Path
from policyprune.storage.files import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(path: Path) -> "subprocess.Popen[str]":
    """Another process that holds the lock until it is killed."""
    command = [sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_refused_while_another_process_holds_it_and_free_when_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path) as process:
        for _ in range(2):
            with pytest.raises(BlockingIOError):
                hold(path)
        process.kill()
    with hold(path), pytest.raises(BlockingIOError):
        hold(path)
    with hold(path):
        path.unlink()
    assert not list(tmp_path.iterdir())


def test_whoever_waits_gets_it_when_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path) as process, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: hold(path, wait=True).__exit__(None, None, None))
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.2)
        process.kill()
        waiting.result(timeout=10)


def test_a_lock_file_that_its_holder_removed_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the file and locking it, its holder may end and remove it."""
    calls = []

    def flock(file: object, how: int) -> None:
        if not calls:
            (tmp_path / "lock").unlink()
        calls.append(how)

    monkeypatch.setattr("fcntl.flock", flock)
    with hold(tmp_path / "lock"):
        assert (tmp_path / "lock").exists()
    assert calls.count(fcntl.LOCK_EX | fcntl.LOCK_NB) == 2


@pytest.mark.parametrize("number", NO_LOCKS)
def test_a_file_system_without_locks_says_so(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other kind of lock takes the place, which would outlive a holder that is killed."""

    def flock(file: object, how: int) -> None:
        raise OSError(number, "not here")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OSError, match="not here") as raised:
        hold(tmp_path / "lock")
    assert raised.value.errno == number
    with hold_where_possible(tmp_path / "lock"), hold_where_possible(tmp_path / "lock"):
        pass


def test_other_errors_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, how: int) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OSError, match="broken disk"):
        hold_where_possible(tmp_path / "lock")


def test_the_cache_folder_is_the_named_one_or_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLICYPRUNE_CACHE", str(tmp_path / "named"))
    assert cache_folder() == tmp_path / "named"
    monkeypatch.delenv("POLICYPRUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache_folder() == tmp_path / "user" / "policyprune"


def test_what_is_there_is_not_made_again_and_a_failure_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLICYPRUNE_CACHE", str(tmp_path / "cache"))
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        if len(made) == 1:
            raise RuntimeError("half-way")
        folder.mkdir()

    with pytest.raises(RuntimeError, match="half-way"):
        made_once(tmp_path / "a", make)
    assert made_once(tmp_path / "a", make) == made_once(tmp_path / "a", make) == tmp_path / "a"
    assert len(made) == 2
    assert not list((tmp_path / "cache" / "locks").iterdir())
