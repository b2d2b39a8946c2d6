"""How far the run in a folder is, as its record and its files tell. Imports no torch."""

import hashlib
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from policyprune.config.schema import Config, Evaluating, Finetuning
from policyprune.config.validate import fingerprint
from policyprune.errors import UsageError
from policyprune.runs.record import Record, read_record
from policyprune.storage.record_file import CURVE_FILE, MASK_FILE, PLAN_FILE, UnreadableError

CHECKSUMMED = (MASK_FILE, PLAN_FILE, CURVE_FILE)
WEIGHTS = ("checkpoint/*.safetensors", "onnx/model.onnx*", "*.gguf")  # too large for a checksum: their size alone
WORK = ("search.state", "search.state.old", "trainer/checkpoint-*")
STATES = ("*.state", "*.state.old")
AnyConfig = Config | Finetuning | Evaluating


@dataclass(frozen=True)
class Status:
    """`state` is new (no record of this config), running (also when killed), interrupted, failed, finished, incomplete
    (finished, but files of it are lost) or unreadable (its record); `reason` says why."""

    state: str
    reason: str = ""
    _: KW_ONLY
    record: Record | None = field(default=None, compare=False)
    lost: Mapping[str, str] = field(default_factory=dict, compare=False)  # what became of files that are lost


def status_of(config: AnyConfig, folder: Path, key: str) -> Status:
    """The status of a config's run in a folder, which `key` of the command line names.

    UsageError when another config was run there and left something.
    """
    try:
        record = read_record(folder)
    except UnreadableError as error:
        return Status("unreadable", error.reason)
    if record is None:
        return Status("new")
    if record.config_hash != fingerprint(config):
        if record.status != "finished" and not unfinished_work(folder):
            return Status("new")
        raise UsageError(
            f"{key}: {str(folder)!r} holds a run of another config ({record.config_hash}), name another folder"
        )
    if record.status != "finished":
        return Status(record.status, record.error or "", record=record)
    lost = lost_files(record.files, folder)
    if set(lost) - {CURVE_FILE}:  # only plots need the curve
        return Status("incomplete", ", ".join(lost.values()), record=record, lost=lost)
    return Status("finished", record.error or "", record=record, lost=lost)


def unfinished_work(folder: Path) -> set[tuple[str, int]]:
    """Names and times of what an unfinished search or training goes on from, and another run must not replace."""
    return {(path.name, path.stat().st_mtime_ns) for pattern in WORK for path in folder.glob(pattern)}


def forget(folder: Path) -> None:
    """Remove all states of a run that is finished."""
    for pattern in STATES:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The files of a run for its record: by path in the folder the bytes of each, and its sha256 where it is small."""
    paths = [path for pattern in (*CHECKSUMMED, *WEIGHTS) for path in sorted(folder.glob(pattern))]
    files: dict[str, dict[str, Any]] = {}
    for path in paths:
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size}
        if name in CHECKSUMMED:
            files[name]["sha256"] = _checksum(path)
    return files


def lost_files(files: Mapping[str, Mapping[str, Any]], folder: Path) -> dict[str, str]:
    """What became of files that are no longer as `files_of` saw them: a line each, by their path in the folder."""
    faults = {name: _fault(folder / name, recorded) for name, recorded in files.items()}
    return {name: f"{name} {fault}" for name, fault in faults.items() if fault}


def _fault(path: Path, recorded: Mapping[str, Any]) -> str:
    try:
        size = path.stat().st_size
        if size != recorded["bytes"]:
            return f"has {size:,} of {recorded['bytes']:,} bytes" if size < recorded["bytes"] else "has grown"
        if "sha256" in recorded and _checksum(path) != recorded["sha256"]:
            return "is damaged (checksum)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return ""


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
