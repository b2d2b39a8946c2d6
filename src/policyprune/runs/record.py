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

WARNING_KEYS = ("task", "split", "length", "scope")  # parts of a protocol that a warning names
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


@dataclass(kw_only=True)
class ResultRow:
    """One measured number; `value` is a number or null, never a sentinel."""

    subject: str  # dense, one_shot, pruned, tuned, reloaded
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
