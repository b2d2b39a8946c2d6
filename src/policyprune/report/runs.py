"""The runs below some folders, as their records tell of them; finished or not."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from policyprune.runs.record import lost_files
from policyprune.storage.record_file import CURVE_FILE, RECORD_FILE, UnreadableError, read_content

log = logging.getLogger(__name__)
FINISHED = "finished"
UNFINISHED = ("failed", "interrupted", "running", "unreadable")
STAGES = ("importance", "search", "tuning")  # those that look at calibration data


@dataclass(frozen=True)
class CalibrationUse:
    """What one stage looked at, and whether it went backwards through the model; None where nobody knows."""

    sequences: int | None
    tokens: int | None
    backward: bool | None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One record. It is read as plain JSON, so that records of older and newer versions of a schema are understood."""

    folder: Path
    content: dict[str, Any]
    status: str  # finished, running, interrupted, failed, unreadable
    error: str = ""

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config."""
        return self._mapping("config")

    @property
    def model(self) -> str:
        """Name of the dense model."""
        return str(self.config.get("model", {}).get("name", "?"))

    @property
    def task(self) -> str:
        """Name of the task."""
        return str(self.config.get("task", {}).get("name", "?"))

    @property
    def keep(self) -> float | None:
        """What the budget keeps of the dense model; None where nothing is pruned."""
        keep = self.config["keep"] if self.only_recovers else self.config.get("budget", {}).get("keep")
        return None if keep is None else float(keep)

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.config.get("seed") or 0)

    @property
    def tuning(self) -> str:
        """Name of the tuning, empty where there is none."""
        if self.only_recovers:
            return str(self.config.get("tuned") or "")
        name = str(self.config.get("tuning", {}).get("name", "none"))
        return "" if name == "none" else name

    @property
    def only_recovers(self) -> bool:
        """Whether it trained what another run pruned."""
        return "keep" in self.config

    @property
    def recovery(self) -> str:
        """Name of the recovery behind that of the recovery before it, empty where there is none."""
        before, name = self.config.get("recovered"), self.config.get("recovery", {}).get("name", "none")
        return " + ".join(str(own) for own in (before, name) if own and own != "none")

    @property
    def trained_on(self) -> int | None:
        """Tokens that a recovery was trained on; None where there was none."""
        tokens = self._mapping("recovery").get("tokens")
        return tokens if isinstance(tokens, int) else None

    @property
    def results(self) -> list[dict[str, Any]]:
        """The measured rows."""
        return self._list("results")

    @property
    def warnings(self) -> list[str]:
        """What makes its numbers doubtful, a line each."""
        return [str(text) for text in self._list("warnings")]

    @property
    def protocol(self) -> dict[str, Any]:
        """How the data was made."""
        return self._mapping("protocol")

    @property
    def search(self) -> dict[str, Any]:
        """What the search tells of itself."""
        return self._mapping("search")

    @property
    def keep_rates(self) -> list[dict[str, Any]]:
        """Kept share of each layer and kind of unit."""
        return self._list("keep_rates")

    def seconds(self, stage: str) -> float | None:
        """Seconds of a stage; of the search with what earlier processes spent on it."""
        if stage == "search" and self.search.get("seconds") is not None:
            return float(self.search["seconds"])
        seconds = [entry["seconds"] for entry in self._list("stages") if entry["name"] == stage]
        return float(sum(value or 0 for value in seconds)) if seconds else None

    def peak_memory(self, stages: Sequence[str]) -> float | None:
        """Highest memory of some stages in MB: the GPU's where one was used, otherwise the process's."""
        entries = [entry for entry in self._list("stages") if entry["name"] in stages]
        for key in ("peak_gpu_memory_mb", "peak_memory_mb"):
            peaks = [float(entry[key]) for entry in entries if entry.get(key)]
            if peaks:
                return max(peaks)
        return None

    @property
    def calibration(self) -> dict[str, CalibrationUse]:
        """Per stage what it looked at, or, where the record does not say, what the config allowed it to."""
        stated = self._mapping("calibration")
        uses = {stage: stated[stage] for stage in STAGES if isinstance(stated.get(stage), dict)}
        if uses:
            keys = ("sequences", "tokens", "backpropagation")
            return {stage: CalibrationUse(*(use.get(key) for key in keys)) for stage, use in uses.items()}
        pool = self.config.get("task", {}).get("calibration", {})
        allowed = {
            "importance": self.config.get("importance", {}).get("sequences"),
            "search": pool.get("count") if self.search.get("forwards") else None,
            "tuning": self.config.get("tuning", {}).get("sequences"),
        }
        length = pool.get("length")
        return {
            stage: CalibrationUse(count, count * length if length else None, None)
            for stage, count in allowed.items()
            if count is not None
        }

    def sequences_seen(self, stages: Sequence[str] = STAGES) -> int | None:
        """The most calibration sequences that any of the stages looked at, None where they looked at none."""
        counts = [use.sequences for stage, use in self.calibration.items() if use.sequences and stage in stages]
        return max(counts, default=None)

    @cached_property
    def curve(self) -> list[dict[str, float]]:
        """The lines of `curve.jsonl` that are whole; none, and a warning, where it is not as the run left it."""
        recorded = {name: file for name, file in self._mapping("files").items() if name == CURVE_FILE}
        lost = lost_files(recorded, self.folder)
        if lost:
            log.warning("%s: %s, it is left out", self.folder, lost[CURVE_FILE])
            return []
        return list(_steps(self.folder / CURVE_FILE))

    def _mapping(self, name: str) -> dict[str, Any]:
        value = self.content.get(name)
        return value if isinstance(value, dict) else {}

    def _list(self, name: str) -> list[dict[str, Any]]:
        value = self.content.get(name)
        return value if isinstance(value, list) else []


def find_runs(folders: Iterable[Path]) -> list[Run]:
    """All runs below the folders, each once, in the order in which they began."""
    paths = {path.resolve(): path for folder in folders for path in sorted(folder.rglob(RECORD_FILE))}
    runs = [run for run in map(_read, paths.values()) if run is not None]
    return sorted(runs, key=lambda run: (str(run.content.get("started", "")), str(run.folder)))


def flattened(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _read(path: Path) -> Run | None:
    try:
        content = read_content(path)
    except UnreadableError as unreadable:
        return Run(folder=path.parent, content={}, status="unreadable", error=unreadable.reason)
    if content is None:  # removed just now
        return None
    error = str(content.get("error") or "")
    return Run(folder=path.parent, content=content, status=content["status"], error=error)


def _steps(path: Path) -> Iterator[dict[str, float]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return
    for line in text.splitlines():
        try:
            step = json.loads(line)
        except ValueError:
            continue
        if isinstance(step, dict):
            yield step
