"""Folders that are going to be written: whether that is possible, and how to leave everything as it was."""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from policyprune.errors import UsageError

OF_HYDRA = {"run.log", "multirun.yaml", ".hydra"}


@dataclass(frozen=True)
class Place:
    """A folder as it was before: `there` is the innermost folder on the way that existed, `held` what was inside."""

    folder: Path
    there: Path
    held: frozenset[str]


def place(key: str, named: str) -> Place:
    """Look at a folder that is going to be written, and make nothing. UsageError where that is impossible."""
    if not named.strip():
        raise UsageError(f"{key}: empty, name a folder")
    folder = Path(os.path.abspath(named))  # noqa: PTH100 - as Hydra does, symbolic links stay
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        long = [name for name in folder.parts if len(os.fsencode(name)) > os.pathconf(there, "PC_NAME_MAX")]
        held = frozenset(_names(folder)) if there == folder else frozenset[str]()
    except NotADirectoryError:
        raise UsageError(f"{key}: {named!r} is a file, name a folder") from None
    except OSError as error:
        raise UsageError(f"{key}: {named!r} cannot be a folder: {error.strerror}") from error
    if "\0" in named or long:
        raise UsageError(f"{key}: {named!r} cannot be the name of a folder")
    if not there.is_dir():
        raise UsageError(f"{key}: {named!r} cannot be made, {str(there)!r} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{key}: {named!r} cannot be written, {str(there)!r} is read-only or not yours")
    return Place(folder, there, held)


def check_output(named: str | None, folder: bool) -> None:
    """UsageError where `output=` cannot be written."""
    if named is None:
        return
    if folder or not named.strip():
        place("output", named)
        return
    place("output", str(Path(named).parent))
    if os.path.lexists(named) and not Path(named).is_file():
        raise UsageError(f"output: {named!r} is a {'folder' if Path(named).is_dir() else 'device'}, name a file")


def leave_as_before(before: Place) -> None:
    """Remove what Hydra made for a run that never began; where there is more, something began."""
    with suppress(OSError):
        new = _names(before.folder) - before.held
        if new - OF_HYDRA:
            return
        for name in new:
            path = before.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in (before.folder, *before.folder.parents):
            if path == before.there:
                return
            path.rmdir()


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
