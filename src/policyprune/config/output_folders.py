"""Folders that are going to be written: whether that is possible, and how to leave everything as it was."""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from policyprune.errors import UsageError

OF_HYDRA = {"run.log", "multirun.yaml", ".hydra"}


@dataclass(frozen=True)
class OutputFolder:
    """A folder before it is written: the names in it, and the innermost folder on the way to it that existed."""

    path: Path
    existing: Path
    names: frozenset[str]


def output_folder(key: str, name: str) -> OutputFolder:
    """Look at a folder that is going to be written, and make nothing. UsageError where that is impossible."""
    if not name.strip():
        raise UsageError(f"{key}: empty, name a folder")
    path = Path(os.path.abspath(name))  # noqa: PTH100 - as Hydra does, symbolic links stay
    try:
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        too_long = any(len(os.fsencode(part)) > os.pathconf(existing, "PC_NAME_MAX") for part in path.parts)
        names = frozenset(_names(path)) if existing == path else frozenset[str]()
    except NotADirectoryError:
        raise UsageError(f"{key}: {name!r} is a file, name a folder") from None
    except OSError as error:
        raise UsageError(f"{key}: {name!r} cannot be a folder: {error.strerror}") from error
    if "\0" in name or too_long:
        raise UsageError(f"{key}: {name!r} cannot be the name of a folder")
    if not existing.is_dir():
        raise UsageError(f"{key}: {name!r} cannot be made, {str(existing)!r} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"{key}: {name!r} cannot be written, {str(existing)!r} is read-only or not yours")
    return OutputFolder(path, existing, names)


def check_output(name: str | None, folder: bool) -> None:
    """UsageError where `output=` cannot be written, as a folder or as a file."""
    if name is None:
        return
    if folder or not name.strip():
        output_folder("output", name)
        return
    output_folder("output", str(Path(name).parent))
    if os.path.lexists(name) and not Path(name).is_file():
        raise UsageError(f"output: {name!r} is a {'folder' if Path(name).is_dir() else 'device'}, name a file")


def checkpoint_folder(folder: str | Path) -> Path:
    """Where a model is saved; UsageError where that is impossible, or where there are files of something else."""
    check_output(str(folder), folder=True)
    path = Path(folder)
    if path.is_dir() and any(path.iterdir()) and not (path / "config.json").is_file():
        raise UsageError(f"folder: {str(folder)!r} holds other files, name another folder")
    return path


def restore(before: OutputFolder) -> None:
    """Remove what Hydra made for a run that never began; where there is more, something began."""
    with suppress(OSError):
        new = _names(before.path) - before.names
        if new - OF_HYDRA:
            return
        for name in new:
            path = before.path / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for folder in (before.path, *before.path.parents):
            if folder == before.existing:
                return
            folder.rmdir()


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
