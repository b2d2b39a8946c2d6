"""`record.json`: what a run was, how far it came and what it measured."""

import dataclasses
import json
import logging
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from policyprune.provenance import git_state, installed_versions
from policyprune.storage.files import write_whole
from policyprune.storage.record_file import RECORD_FILE, SCHEMA, read_content

log = logging.getLogger(__name__)

TOLD = ("task", "split", "length", "scope")  # parts of a protocol that a warning names
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


@dataclass
class Row:
    """One measured number; `value` is a number or null, never a sentinel."""

    subject: str  # dense, one_shot, pruned, tuned, reloaded
    metric: str
    value: float | int | None
    unit: str
    protocol: dict[str, Any]
    stderr: float | None = None


@dataclass
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
    calibration: dict[str, dict[str, Any]] = field(default_factory=dict)  # stage -> what it looked at (`Observed`)
    search: dict[str, Any] = field(default_factory=dict)
    tuning: list[dict[str, Any]] = field(default_factory=list)
    keep_rates: list[dict[str, Any]] = field(default_factory=list)
    results: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)  # what a reader of the numbers has to know
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # of a finished run (`artefacts.noted`)
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
            of = ", ".join(f"{key} {protocol[key]}" for key in TOLD if key in protocol)
            name = f"{metric} of the {subject} model".replace("_", " ")
            self.warn(f"not finite: {name} ({of})" if of else f"not finite: {name}")
        elif stderr is not None and not math.isfinite(stderr):
            stderr = None
        self.results.append(Row(subject, metric, value, unit, protocol, stderr))

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
    blank = Record({}, "", {}, command=[], versions={}, git={})
    known = {own.name: content.get(own.name, getattr(blank, own.name)) for own in dataclasses.fields(Record)}
    names = {own.name for own in dataclasses.fields(Row)}
    blank_row = {"unit": "", "protocol": {}}
    rows = [blank_row | {name: value for name, value in row.items() if name in names} for row in known["results"]]
    return Record(**{**known, "results": [Row(**row) for row in rows]})


def _plain(value: Any) -> Any:
    """JSON has no infinity and no NaN: they become null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value
