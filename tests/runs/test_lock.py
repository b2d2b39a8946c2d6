"""One process per folder."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from policyprune.errors import UsageError
from policyprune.runs.lock import FILE, only_one

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "ab")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_refused_while_another_process_holds_it_and_free_when_it_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path / FILE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=r"hydra\.run\.dir: .* in use by another process"), only_one(tmp_path):
            pytest.fail("let in")
        holder.kill()
    with only_one(tmp_path):
        assert (tmp_path / FILE).exists()
    assert not list(tmp_path.iterdir())


def test_a_lock_file_that_its_holder_removed_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the file and locking it, its holder may end and remove it."""
    import fcntl

    calls = []

    def flock(file: object, how: int) -> None:
        if not calls:
            (tmp_path / FILE).unlink()
        calls.append(how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with only_one(tmp_path):
        assert (tmp_path / FILE).exists()
    assert len(calls) == 2


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import errno
    import fcntl

    def flock(file: object, how: int) -> None:
        raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr(fcntl, "flock", flock)
    with only_one(tmp_path):
        pass
    assert "cannot be locked" in caplog.text
