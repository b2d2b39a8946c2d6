"""`record.json`: what a run was and measured, and how far it is by its record and files. Imports no torch."""

import dataclasses
import hashlib
import json
import logging
import math
import shutil
import sys
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from policyprune.config.schema import Config, Evaluating, Finetuning, Recovering
from policyprune.config.validate import fingerprint
from policyprune.errors import UsageError
from policyprune.provenance import git_state, installed_versions
from policyprune.storage.files import write_whole
from policyprune.storage.record_file import (
    CURVE_FILE,
    MASK_FILE,
    PLAN_FILE,
    RECORD_FILE,
    SCHEMA,
    UnreadableError,
    read_content,
)

log = logging.getLogger(__name__)
WARNING_KEYS = ("text", "task", "split", "length", "scope")  # parts of a protocol that a warning names
PACKAGES = (
    "policyprune",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "lm_eval",
    "hydra-core",
    "omegaconf",
    "numpy",
)
RUNNING, FAILED = b'"status": "running"', b'"status": "failed" '  # of the same length
CHECKSUMMED = (MASK_FILE, PLAN_FILE, CURVE_FILE)
# too large for a checksum: their size alone
WEIGHTS = ("checkpoint/*.safetensors", "adapter/*.safetensors", "onnx/model.onnx*", "*.gguf")
TRAINER = "trainer"  # folder of a training's checkpoints
WORK = ("search.state", "search.state.old", f"{TRAINER}/checkpoint-*")
STATES = ("*.state", "*.state.old")
AnyConfig = Config | Finetuning | Recovering | Evaluating


@dataclass(kw_only=True)
class ResultRow:
    """One measured number; `value` is a number or null, never a sentinel."""

    subject: str  # dense, one_shot, pruned, tuned, recovered, reloaded
    metric: str
    value: float | int | None
    unit: str
    protocol: dict[str, Any]
    stderr: float | None = None


@dataclass(kw_only=True)
class Record:
    """The whole record: `status` is running, finished, interrupted or failed, `stages` has seconds and peak memory."""

    config: dict[str, Any]
    config_hash: str
    hardware: dict[str, Any]
    status: str = "running"
    error: str | None = None
    started: str = ""
    command: list[str] = field(default_factory=lambda: list(sys.argv))
    versions: dict[str, str | None] = field(default_factory=lambda: installed_versions(PACKAGES))
    git: dict[str, Any] = field(default_factory=git_state)
    protocol: dict[str, Any] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    calibration: dict[str, dict[str, Any]] = field(default_factory=dict)  # stage -> `CalibrationUsage.taken`
    search: dict[str, Any] = field(default_factory=dict)
    tuning: list[dict[str, Any]] = field(default_factory=list)
    recovery: dict[str, Any] = field(default_factory=dict)  # `recovery.recover.Recovered.facts`, and the teacher
    keep_rates: list[dict[str, Any]] = field(default_factory=list)
    results: list[ResultRow] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)  # what a reader of the numbers has to know
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # of a finished run (`status.files_of`)
    schema: int = SCHEMA

    def add(
        self,
        subject: str,
        metric: str,
        value: float | int | None,
        unit: str,
        protocol: dict[str, Any],
        stderr: float | None = None,
    ) -> None:
        """Append a result; one that is not finite is null, with a warning."""
        if value is None or not math.isfinite(value):
            value = stderr = None
            of = ", ".join(f"{key} {protocol[key]}" for key in WARNING_KEYS if key in protocol)
            name = f"{metric} of the {subject} model".replace("_", " ")
            self.warn(f"not finite: {name} ({of})" if of else f"not finite: {name}")
        elif stderr is not None and not math.isfinite(stderr):
            stderr = None
        row = ResultRow(subject=subject, metric=metric, value=value, unit=unit, protocol=protocol, stderr=stderr)
        self.results.append(row)

    def warn(self, text: str) -> None:
        """Say in one line, here and on the screen, what makes a number doubtful; the same line once."""
        if text not in self.warnings:
            self.warnings.append(text)
            log.warning("%s", text)

    def write(self, folder: Path) -> None:
        """Write `record.json` atomically: a reader sees the old or the new one, never a part."""
        text = json.dumps(_plain(dataclasses.asdict(self)), indent=2, allow_nan=False)
        write_whole(folder / RECORD_FILE, f"{text}\n".encode())


def mark_failed(folder: Path) -> None:
    """Let the record on disk say `failed` in the place of `running`, where there is no room for another one."""
    with (folder / RECORD_FILE).open("r+b") as file:
        at = file.read().find(RUNNING)
        if at >= 0:
            file.seek(at)
            file.write(FAILED)


def read_record(folder: Path) -> Record | None:
    """The record in a run's folder, None where there is none; UnreadableError where it cannot be understood."""
    content = read_content(folder / RECORD_FILE)
    if content is None:
        return None
    blank = Record(config={}, config_hash="", hardware={}, command=[], versions={}, git={})
    known = {field.name: content.get(field.name, getattr(blank, field.name)) for field in dataclasses.fields(Record)}
    names = {field.name for field in dataclasses.fields(ResultRow)}
    defaults = {"unit": "", "protocol": {}}
    rows = [defaults | {name: value for name, value in row.items() if name in names} for row in known["results"]]
    return Record(**{**known, "results": [ResultRow(**row) for row in rows]})


def _plain(value: Any) -> Any:
    """JSON has no infinity and no NaN: they become null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value


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
    shutil.rmtree(folder / TRAINER, ignore_errors=True)


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
