"""Files and folders that are there whole or not at all."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from policyprune.models.adapter import adapt
from policyprune.pruning.mask_file import save_mask
from policyprune.pruning.space import Group, Space
from policyprune.storage.files import SCRATCH_PREFIX, clear, disk_trouble, write_file, write_folder, write_whole
from policyprune.surgery.checkpoint import save_checkpoint

KILLED = """
import os, signal, sys
from pathlib import Path
from policyprune.storage.files import write_file, write_folder
with {writer}(Path(sys.argv[1])) as scratch:
    (scratch / "weights" if scratch.is_dir() else scratch).write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def killed(writer: str, target: Path) -> None:
    """A process that is killed while it writes."""
    done = subprocess.run([sys.executable, "-c", KILLED.format(writer=writer), str(target)], check=False)
    assert done.returncode == -signal.SIGKILL


def test_permissions_are_those_of_the_umask(umask: int, tmp_path: Path, tiny_llama: Any, tiny_tokenizer: Any) -> None:
    space = Space((Group(0, "ffn", 3),))
    save_mask(tmp_path / "mask.safetensors", torch.ones(3, dtype=torch.bool), space, torch.ones(3))
    write_whole(tmp_path / "text", b"text")
    with write_folder(tmp_path / "folder" / "checkpoint") as scratch:
        save_file({"a": torch.ones(2)}, scratch / "model.safetensors")
    model = tiny_llama()
    save_checkpoint(model, tiny_tokenizer, adapt(model), tmp_path / "folder" / "pruned")
    written = list(tmp_path.rglob("*"))
    assert {"model.safetensors", "mask.safetensors", "text", "config.json"} <= {path.name for path in written}
    for path in written:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_a_reader_sees_the_old_or_the_new(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", b"old")
    with write_file(tmp_path / "a") as scratch:
        scratch.write_bytes(b"new")
        assert (tmp_path / "a").read_bytes() == b"old"
    assert (tmp_path / "a").read_bytes() == b"new"
    with write_folder(tmp_path / "b") as scratch:
        (scratch / "old").touch()
    with write_folder(tmp_path / "b") as scratch:
        (scratch / "new").touch()
        assert names(tmp_path / "b") == ["old"]
    assert names(tmp_path / "b") == ["new"]
    assert names(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("writer", [write_file, write_folder])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path, writer: Any, error: Any) -> None:
    write_whole(tmp_path / "a" / "inside", b"old")
    with pytest.raises(error), writer(tmp_path / "a"):
        raise error
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["inside"]


def test_a_folder_that_was_moved_aside_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "a" / "inside", b"old")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), write_folder(tmp_path / "a"):
        pass
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["inside"]


@pytest.mark.parametrize("writer", ["write_file", "write_folder"])
def test_what_a_killed_process_leaves_is_removed_by_the_next_writer(tmp_path: Path, writer: str) -> None:
    killed(writer, tmp_path / "model [1]")
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(SCRATCH_PREFIX)
    write_whole(tmp_path / "other", b"")
    assert left.exists(), "the scratch of another target"
    write_whole(tmp_path / "model [1]", b"whole")
    assert names(tmp_path) == ["model [1]", "other"]


def test_clearing_removes_what_is_dead_and_lets_be_what_is_alive(tmp_path: Path) -> None:
    killed("write_folder", tmp_path / "checkpoint")
    with write_file(tmp_path / "alive") as scratch:
        scratch.write_bytes(b"alive")
        assert len(names(tmp_path)) == 2
        clear(tmp_path)
        with write_file(tmp_path / "alive") as second:  # another process's, as it were
            second.write_bytes(b"first")
    assert names(tmp_path) == ["alive"]
    assert (tmp_path / "alive").read_bytes() == b"alive"


def test_what_was_moved_aside_by_a_killed_process_comes_back(tmp_path: Path) -> None:
    left = tmp_path / f"{SCRATCH_PREFIX}checkpoint-0a1b2c3d.tmp"
    write_whole(left / "old" / "weights", b"whole")
    (left / "lock").touch()
    clear(tmp_path)
    assert names(tmp_path) == ["checkpoint"]
    assert (tmp_path / "checkpoint" / "weights").read_bytes() == b"whole"


@pytest.mark.parametrize("writer", [write_file, write_folder])
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_names_the_file_that_was_meant(tmp_path: Path, writer: Any, error: Exception) -> None:
    with pytest.raises(OSError, match="No space left") as raised, writer(tmp_path / "a"):
        raise error
    assert raised.value.filename == str(tmp_path / "a")
    assert disk_trouble(raised.value) == f"[Errno 28] No space left on device: {str(tmp_path / 'a')!r}"
    assert names(tmp_path) == []


def test_what_cannot_be_written_names_the_target(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for target in (tmp_path / "folder", tmp_path / "file" / "below", tmp_path / ("long" * 80)):
        with pytest.raises(OSError, match=r"\[Errno \d+\] [^\n]*") as raised:
            write_whole(target, b"")
        assert str(target).startswith(raised.value.filename)
    assert names(tmp_path) == ["file", "folder"]
    with pytest.raises(OSError, match="elsewhere") as raised, write_file(tmp_path / "a"):
        raise FileNotFoundError(errno.ENOENT, "No such file", "elsewhere")
    assert raised.value.filename == "elsewhere", "an error of what the block reads is none of the target"
