"""The runs below some folders, as their records tell of them; finished or not."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from policyprune.runs.status import CURVE_FILE, lost_files
from policyprune.storage.record_file import RECORD_FILE, UnreadableError, read_content

log = logging.getLogger(__name__)
FINISHED = "finished"
UNFINISHED = ("failed", "interrupted", "running", "unreadable")


@dataclass(frozen=True)
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
        keep = self.config.get("budget", {}).get("keep")
        return None if keep is None else float(keep)

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.config.get("seed") or 0)

    @property
    def tuning(self) -> str:
        """Name of the tuning, empty where there is none."""
        name = str(self.config.get("tuning", {}).get("name", "none"))
        return "" if name == "none" else name

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
        spent = [own["seconds"] for own in self._list("stages") if own["name"] == stage]
        return float(sum(own or 0 for own in spent)) if spent else None

    def peak_memory(self, stages: Sequence[str]) -> float | None:
        """Highest memory of some stages in MB: the GPU's where one was used, otherwise the process's."""
        own = [stage for stage in self._list("stages") if stage["name"] in stages]
        for key in ("peak_gpu_memory_mb", "peak_memory_mb"):
            peaks = [float(stage[key]) for stage in own if stage.get(key)]
            if peaks:
                return max(peaks)
        return None

    @cached_property
    def curve(self) -> list[dict[str, float]]:
        """The lines of `curve.jsonl` that are whole; none, and a warning, where it is not as the run left it."""
        noted = {name: own for name, own in self._mapping("files").items() if name == CURVE_FILE}
        wrong = lost_files(noted, self.folder)
        if wrong:
            log.warning("%s: %s, it is left out", self.folder, wrong[CURVE_FILE])
            return []
        return list(_lines(self.folder / CURVE_FILE))

    def _mapping(self, name: str) -> dict[str, Any]:
        found = self.content.get(name)
        return found if isinstance(found, dict) else {}

    def _list(self, name: str) -> list[dict[str, Any]]:
        found = self.content.get(name)
        return found if isinstance(found, list) else []


def find_runs(folders: Iterable[Path]) -> list[Run]:
    """All runs below the folders, each once, in the order in which they began."""
    paths = {path.resolve(): path for folder in folders for path in sorted(folder.rglob(RECORD_FILE))}
    runs = [run for run in map(_read, paths.values()) if run is not None]
    return sorted(runs, key=lambda run: (str(run.content.get("started", "")), str(run.folder)))


def _read(path: Path) -> Run | None:
    try:
        content = read_content(path)
    except UnreadableError as error:
        return Run(path.parent, {}, "unreadable", error.reason)
    if content is None:  # removed just now
        return None
    return Run(path.parent, content, content["status"], str(content.get("error") or ""))


def _lines(path: Path) -> Iterator[dict[str, float]]:
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


def flattened(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
