"""What a run keeps of its search: a curve, a state to go on from, and words for the bar and the tracker."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from policyprune.config.schema import Optimizer, Safety
from policyprune.errors import RunError, UsageError
from policyprune.progress import bar
from policyprune.pruning.optimizers.problem import Each, Found, Job
from policyprune.runs.state import EMPTY, Content, Curve, SearchState, StateFile, read_curve
from policyprune.search.prune import Pruning, Scores, find_mask
from policyprune.search.team import Team
from policyprune.storage.record_file import CURVE_FILE
from policyprune.tasks.task import CalibrationUsage
from policyprune.tracking import Tracker

logger = logging.getLogger(__name__)

HELD_ON_GPU = 10  # steps between two looks at numbers that live on a GPU


@dataclass(frozen=True, kw_only=True)
class SearchContext:
    """The run that a search is a part of.

    `folder` gets `curve.jsonl` and `search.state`, `config_hash` names the run that these belong to. `usage` counts the
    calibration sequences that are looked at. `team`: the processes that share the masks of a step.
    """

    folder: Path
    config_hash: str
    safety: Safety
    tracker: Tracker
    usage: CalibrationUsage
    team: Team | None = None


def search(
    pruning: Pruning, scores: Scores, optimizer: Optimizer, context: SearchContext
) -> tuple[Found, dict[str, Any]]:
    """Find a mask, going on where an earlier process ended; also what the record says of the search.

    RunError when too many losses are NaN or infinite.
    """
    log = SearchLog(context, pruning.quick.device, str(pruning.quick.model.dtype).removeprefix("torch."))
    team = context.team
    share = None if team is None else _shared(team, context.usage)
    with log.open(optimizer.length):
        found = log.found
        if found is None:
            with log.saving() as state:
                found = find_mask(pruning, scores, optimizer, log.report, state, share)
                state.end(vars(found))
    return found, {**log.facts(), "processes": 1 if team is None else team.size}


def _shared(team: Team, usage: CalibrationUsage) -> Callable[[Each], Each]:
    """Evaluation in all processes; what the others look at is counted here."""

    def share(local: Each) -> Each:
        def each(jobs: Sequence[Job]) -> list[Tensor]:
            for _, rows in jobs:
                usage.note(rows)
            return team.each(local, jobs)

        return each

    return share


class SearchLog:
    """Curve file, state file, bar and tracker of one search, which may have begun in an earlier process."""

    def __init__(self, context: SearchContext, device: torch.device, dtype: str) -> None:
        self._context, self._device, self._dtype = context, device, dtype
        self._path = context.folder / CURVE_FILE
        self._file = StateFile(context.folder / "search.state", {"config": context.config_hash})
        self._began, self._skipped = time.perf_counter(), 0
        self._resumed: list[int] = []  # steps after which a later process went on
        self._before = self._file.read(lambda content: read_curve(self._path, content["curve"]) is not None)
        if self._before is not None:
            self._go_on(self._before)

    def _go_on(self, before: Content) -> None:
        """UsageError where this process computes on another device, or in another data type, than the earlier one."""
        if before["device"] != self._device.type:
            raise UsageError(
                f"model.device: {self._device.type!r} cannot go on with a search that began on {before['device']!r}, "
                f"use that or remove {self._file.path}"
            )
        if before["dtype"] != self._dtype:
            raise UsageError(
                f"model.search_dtype: {self._dtype} cannot go on with a search that began in {before['dtype']}, "
                f"use that or remove {self._file.path}"
            )
        self._began -= before["seconds"]
        self._context.usage.load(before["calibration"])
        self._resumed = [*before["resumed"], before["steps"]]
        logger.info("the search goes on after step %d", before["steps"])

    @contextmanager
    def open(self, steps: int | None) -> Iterator[None]:
        """Write the curve and show a bar of `steps` during the block, both from where an earlier process ended."""
        every = HELD_ON_GPU if self._device.type == "cuda" else 1
        kept = self._before["curve"] if self._before is not None else EMPTY
        with Curve(self._path, every, kept[0]) as self._curve, bar(steps, "search", "step") as self._bar:
            earlier = read_curve(self._path, kept) or []
            self._bar.n = self._bar.initial = len(earlier)
            self._tell(earlier)
            yield

    @property
    def found(self) -> Found | None:
        """What an earlier process found, where it came to the end."""
        ended = self._before is not None and self._before["found"] is not None
        return Found(**self._before["found"]) if self._before is not None and ended else None

    def saving(self) -> SearchState:
        """The state of the optimizer, for a `with` block."""
        return SearchState(file=self._file, safety=self._context.safety, before=self._before, around=self._content)

    def report(self, step: dict[str, Tensor | float]) -> None:
        """Take the numbers of a step."""
        self._tell(self._curve.add(step))
        self._bar.update()

    def facts(self) -> dict[str, Any]:
        """What the record says of the search."""
        return {
            "skipped": self._skipped,
            "resumed": self._resumed,
            "seconds": round(time.perf_counter() - self._began, 3),
            "dtype": self._dtype,
        }

    def _tell(self, rows: list[dict[str, float]]) -> None:
        """RunError when too many masks were skipped."""
        for values in rows:
            self._bar.set_postfix(loss=f"{values['loss']:.3f}", keep=f"{values['keep']:.3f}", refresh=False)
            self._context.tracker.log(values, step=int(values["step"]))
            self._skipped += int(values.get("skipped", 0))
        allowed = self._context.safety.max_skipped
        if self._skipped > allowed:
            raise RunError(
                f"{self._skipped} masks had a loss that is NaN or infinite, more than safety.max_skipped={allowed}"
            )

    def _content(self) -> dict[str, Any]:
        """What is saved beside the optimizer's own state."""
        self._tell(self._curve.flush())
        return {
            "curve": self._curve.sync(),
            "steps": int(self._bar.n),
            "seconds": time.perf_counter() - self._began,
            "resumed": self._resumed,
            "device": self._device.type,
            "dtype": self._dtype,
            "calibration": self._context.usage.state(),
        }
