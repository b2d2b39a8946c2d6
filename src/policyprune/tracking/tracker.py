"""What a run tells an experiment tracker; a tracker that fails never ends the run."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from policyprune.config import schema
from policyprune.runs.record import Record
from policyprune.runs.rows import distinctions
from policyprune.storage.record_file import NAMING_KEYS
from policyprune.tracking.tensorboard import TensorBoardTracker
from policyprune.tracking.wandb import WandbTracker

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """What a run tells a tracker."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Values of one search step."""

    def finish(self, summary: Mapping[str, Any], keep_rates: list[dict[str, Any]], failed: bool) -> None:
        """Final metrics and the keep rate of each layer; ends the tracker's run."""


class NoTracker:
    """Tells nobody."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Nothing."""

    def finish(self, summary: Mapping[str, Any], keep_rates: list[dict[str, Any]], failed: bool) -> None:
        """Nothing."""


class Forgiving:
    """A tracker whose first failure is logged in one line and silences it."""

    def __init__(self, start: Callable[[], Tracker]) -> None:
        self._tracker: Tracker = NoTracker()
        self._try(lambda: setattr(self, "_tracker", start()))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Values of one search step."""
        self._try(lambda: self._tracker.log(values, step))

    def finish(self, summary: Mapping[str, Any], keep_rates: list[dict[str, Any]], failed: bool) -> None:
        """Final metrics; ends the tracker's run."""
        self._try(lambda: self._tracker.finish(summary, keep_rates, failed))

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # a tracker may raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            log.warning("the tracker failed and is off from here on, the run goes on: %s", reason)
            self._tracker = NoTracker()


@contextmanager
def open_tracker(settings: schema.Tracker, record: Record, folder: Path) -> Iterator[Tracker]:
    """The tracker that the config asks for; told the record's results when the block ends, even by an error."""
    if settings.name == "none":
        yield NoTracker()
        return

    def start() -> Tracker:
        if isinstance(settings, schema.Wandb):
            return WandbTracker(config=settings, name=folder.name, run_config=record.config, folder=folder)
        return TensorBoardTracker(record.config, folder)

    tracker = Forgiving(start)
    failed = True
    try:
        yield tracker
        failed = False
    finally:
        tracker.finish(named_results(record), record.keep_rates, failed)


def named_results(record: Record) -> dict[str, float | int | None]:
    """Every result under a name of its own: subject/metric/task, split, scope, batch size, length, where it has them.

    The spread of a latency stands beside it, under `.../spread`.
    """
    names = [
        "/".join([row.subject, row.metric, *(str(row.protocol[key]) for key in NAMING_KEYS if key in row.protocol)])
        for row in record.results
    ]
    words = distinctions(names, [row.protocol for row in record.results])
    values: dict[str, float | int | None] = {}
    for row, name, word in zip(record.results, names, words, strict=True):
        full = f"{name}/{word}" if word else name
        assert full not in values, full
        values[full] = row.value
        if row.protocol.get("spread") is not None:
            values[f"{full}/spread"] = row.protocol["spread"]
    return values
