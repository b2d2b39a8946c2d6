"""All measured values of some runs, tidy, and their means over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from policyprune.report.calibration import STAGES, sequences_seen
from policyprune.report.methods import row_names
from policyprune.report.metrics import place
from policyprune.report.runs import FINISHED, Run, flattened
from policyprune.runs.rows import distinctions, noise

ROW = ["model", "task", "method", "tuning"]
CELL = [*ROW, "keep", "metric", "place"]
DENSE = "dense"
APART = "apart"  # the part of a place that tells rows of one run apart which share all the others
NOT_IN_TABLES = "reloaded"  # the pruned or tuned model again, measured by another process
MEASURED = [*CELL, "run", "seed", "value", "stderr", "unit", "conditions"]


@dataclass(frozen=True)
class Line:
    """A row that a run has in a table, with values or not."""

    model: str
    task: str
    method: str
    tuning: str

    @property
    def title(self) -> str:
        """The name in plots: the method, and what was done to what it kept."""
        return f"{self.method} + {self.tuning}" if self.tuning else self.method


def lines_of(runs: Sequence[Run]) -> list[list[Line]]:
    """For each run the rows that it fills or should have filled: pruned, and tuned where it tunes."""
    names = row_names(runs)
    lines: list[list[Line]] = []
    for number, run in enumerate(runs):
        tunings = ["", run.tuning] if run.tuning else [""]
        lines.append([Line(run.model, run.task, names[number], tuning) for tuning in tunings] if run.config else [])
    return lines


def measured(runs: Sequence[Run]) -> pd.DataFrame:
    """A row per measured number of the finished runs, with the columns MEASURED.

    `place` is what tells two columns of one metric apart, `conditions` all else that the number depends on.
    """
    names, rows = row_names(runs), []
    for number, run in enumerate(runs):
        if run.status != FINISHED:
            continue
        conditions = _conditions(run)
        for row, word in zip(run.results, _words(run), strict=True):
            if row["subject"] == NOT_IN_TABLES:
                continue
            protocol = dict(row.get("protocol") or {})
            method, tuning = _subject(row["subject"], protocol.pop("scope", None), names[number], run)
            where = place(protocol) + (((APART, word),) if word else ())
            own = {key: value for key, value in flattened(protocol).items() if key not in dict(where)}
            if "metrics" in protocol:  # of a mean over tasks
                own["tasks"] = ", ".join(sorted(protocol["metrics"]))
            rows.append(
                {
                    "model": run.model,
                    "task": run.task,
                    "method": method,
                    "tuning": tuning,
                    "keep": None if method == DENSE else run.keep,
                    "metric": row["metric"],
                    "place": where,
                    "run": number,
                    "seed": run.seed,
                    "value": _finite(row["value"]),
                    "stderr": _finite(row.get("stderr")),
                    "unit": row.get("unit", ""),
                    "conditions": {**_of_subject(row["subject"], conditions, run), **own},
                }
            )
    frame = pd.DataFrame(rows, columns=MEASURED)
    return frame.astype({"keep": float, "value": float, "stderr": float})


def over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per cell: mean, deviation (of a sample, NaN for one seed), n seeds, mean standard error, conditions, noise.

    Runs of one seed count once, as their mean. A value that is not finite makes the cell's mean NaN. The noise of a
    time is that of the run whose rounds differ most, `spread` what it says in numbers.
    """
    columns = [*CELL, "mean", "deviation", "n", "stderr", "unit", "conditions", "spread", "noise"]
    rows = []
    for key, group in frame.groupby(CELL, sort=False, dropna=False):
        seeds = group.groupby("seed")["value"].agg(lambda values: values.mean(skipna=False))
        dense = key[CELL.index("method")] == DENSE  # which has no seed
        worst = _noisiest(list(group["conditions"]))
        rows.append(
            (
                *key,
                seeds.mean(skipna=False),
                float("nan") if dense else seeds.std(ddof=1, skipna=False),
                1 if dense else len(seeds),
                group["stderr"].mean(),
                group["unit"].iloc[0],
                list(group["conditions"]),
                worst.get("spread"),
                noise(worst),
            )
        )
    return pd.DataFrame(rows, columns=columns).astype({"spread": float})


def _words(run: Run) -> list[str]:
    """What tells rows of a run apart that would share a cell, "" for almost all."""
    names = [repr((row["subject"], row["metric"], place(row.get("protocol") or {}))) for row in run.results]
    scopes = [str((row.get("protocol") or {}).get("scope")) for row in run.results]
    protocols = [row.get("protocol") or {} for row in run.results]
    return distinctions([f"{name} {scope}" for name, scope in zip(names, scopes, strict=True)], protocols)


def _finite(value: Any) -> float | None:
    """A number, None for what is none: records of others may have NaN or infinity where ours have null."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _noisiest(conditions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    known = [own for own in conditions if "spread" in own]
    return max(known, key=lambda own: own["spread"] if own["spread"] is not None else 0.0, default={})


def _subject(subject: str, scope: str | None, name: str, run: Run) -> tuple[str, str]:
    if subject == DENSE:
        return DENSE, ""
    if subject == "one_shot":
        importance = run.config.get("importance", {}).get("name", "metric")
        return f"{importance} alone" + (f", {scope.replace('_', ' ')}" if scope else ""), ""
    return name, run.tuning if subject == "tuned" else ""


def _conditions(run: Run) -> dict[str, Any]:
    """The protocol of the run's data, without what differs by design."""
    stated = {key: value for key, value in flattened(run.protocol).items() if not key.endswith("seed")}
    stated.pop("calibration.count", None)
    return stated


def _of_subject(subject: str, conditions: dict[str, Any], run: Run) -> dict[str, Any]:
    """With the calibration data that the subject owes something to: the dense model none."""
    if subject == DENSE:
        return {key: value for key, value in conditions.items() if not key.startswith("calibration")}
    stages = {"one_shot": STAGES[:1], "pruned": STAGES[:2]}.get(subject, STAGES)
    return {**conditions, "calibration sequences": sequences_seen(run, stages)}
