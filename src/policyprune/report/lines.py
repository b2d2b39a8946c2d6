"""What a row of a table is called: the method, and the settings in which its runs differ."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from policyprune.report.runs import Run, flattened
from policyprune.storage.record_file import method_name

DENSE = "dense"
NEVER = ("model.", "evaluation.", "export.", "tracker.", "safety.")  # not part of a method, or the same result anyway
ELSEWHERE = (
    "seed",
    "force",
    "method",
    "budget.keep",
    "tuning.name",
    "recovery.name",
    "recovered",
    "state",
)  # seeds, which have weights of their own, are averaged; the others have columns


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row that a run has in a table, with values or not."""

    model: str
    task: str
    method: str
    tuning: str = ""
    recovery: str = ""

    @property
    def title(self) -> str:
        """The name in plots: the method, and what was done to what it kept."""
        return " + ".join(filter(None, (self.method, self.tuning, self.recovery)))


def lines_of(runs: Sequence[Run]) -> list[list[Line]]:
    """For each run the rows that it fills or should have filled: pruned, tuned, recovered; none if unreadable.

    Runs of one method, model, task, tuning and keep rate that differ in more than the seed get the values in which they
    differ behind the method's name, so that an ablation has a row per value.
    """
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    methods = [method_of(run) for run in runs]
    for number, run in enumerate(runs):
        groups[run.model, run.task, methods[number], run.tuning, run.recovery, run.keep].append(number)
    settings = [_settings(run) for run in runs]
    differing: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for (model, task, method, _, _, _), members in groups.items():
        differing[model, task, method] |= _differing([settings[number] for number in members])
    lines: list[list[Line]] = []
    for run, method, values in zip(runs, methods, settings, strict=True):
        name = _name(method, values, differing[run.model, run.task, method])
        done = dict.fromkeys([("", ""), (run.tuning, ""), (run.tuning, run.recovery)][-1 if run.only_recovers else 0 :])
        lines.append(
            [Line(model=run.model, task=run.task, method=name, tuning=own[0], recovery=own[1]) for own in done]
            if run.content
            else []
        )
    return lines


def method_of(run: Run) -> str:
    """The method of its config; where nothing was pruned, what was done."""
    if "training" in run.config:
        return "fine-tuned"
    return method_name(run.config) or f"{'recovered' if run.recovery else 'evaluated'}, {run.folder.name}"


def _settings(run: Run) -> dict[str, Any]:
    return {
        key: value
        for key, value in flattened(run.config).items()
        if key not in ELSEWHERE
        and not key.endswith(".seed")
        and not key.startswith(NEVER)
        and (not key.startswith("task.") or (key.startswith("task.calibration.") and not run.only_recovers))
    }


def _differing(settings: Sequence[dict[str, Any]]) -> set[str]:
    """The keys in which some runs differ, without what follows from a group's other name."""
    keys = {key for values in settings for key in values}
    differing = {key for key in keys if len({str(values[key]) for values in settings if key in values}) > 1}
    renamed = tuple(key.removesuffix("name") for key in differing if key.endswith(".name"))
    return {key for key in differing if key.endswith(".name") or not key.startswith(renamed)}


def _name(method: str, settings: dict[str, Any], keys: set[str]) -> str:
    values = [f"{_short(key)}={_text(settings[key])}" for key in sorted(keys) if key in settings]
    return f"{method} ({', '.join(values)})" if values else method


def _short(key: str) -> str:
    return key.removesuffix(".name").removeprefix("optimizer.").removeprefix("task.")


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)
