"""The numbers of a table: metrics, their means over seeds, and how they are written."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from policyprune.report.lines import DENSE, Line
from policyprune.report.runs import FINISHED, STAGES, Run, flattened
from policyprune.runs.summary import distinctions, noise

Setting = tuple[tuple[str, Any], ...]  # the parts of a protocol that make another column: (("length", 128),)
LOWER = ("perplexity", "cross_entropy", "squared_error")
HIGHER = (
    "accuracy",
    "f1",
    "exact_match",
    "matthews",
    "pearson",
    "spearman",
    "agreement",
    "zero_shot_mean",
    "zero_shot_mean_acc",
    "acc",
    "acc_norm",
)
SETTING_KEYS = ("text", "length", "sequence_length", "split", "task", "batch_size")
NAMES = {
    "f1": "F1",
    "acc_norm": "acc_norm",
    "zero_shot_mean": "zero-shot mean",
    "zero_shot_mean_acc": "zero-shot mean of acc",
    "block_macs": "MACs of the blocks",
    "block_latency": "latency of the blocks",
    "latency_ratio": "latency, share of the dense model's",
    "block_latency_share": "latency of the blocks, share of the dense model's",
}
ARROWS = {-1: "↓", 0: "", 1: "↑"}
APART = "apart"  # the part of a setting that tells rows of one run apart which share all the others
NOT_IN_TABLES = "reloaded"  # the pruned or tuned model again, measured by another process
SHARED_TEXT = ("perplexity",)  # all rows see one text, whose windows differ far more than the rows do on them


def better(metric: str) -> int:
    """1 where high values are better, -1 where low ones are, 0 where nobody knows."""
    return 1 if metric in HIGHER else -1 if metric in LOWER else 0


def setting_of(protocol: dict[str, Any]) -> Setting:
    """What of a protocol tells two columns of one metric apart; a zero-shot task is known by its name alone."""
    keys = ("task",) if "task" in protocol else SETTING_KEYS
    return tuple((key, protocol[key]) for key in keys if key in protocol)


def setting_title(setting: Iterable[tuple[str, Any]]) -> str:
    """A setting in words: `128 tokens`, `nyt, 128 tokens`, `validation`, `piqa`."""
    return ", ".join(f"{value} tokens" if "length" in key else str(value) for key, value in setting)


def title(metric: str) -> str:
    """The metric in words."""
    return NAMES.get(metric, metric.replace("_", " "))


def written(metric: str, value: float) -> str:
    """A value with as many digits as it deserves."""
    if metric in LOWER:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.2f}" if metric == "perplexity" else f"{value:.4f}"
    return f"{value:.4f}"


def signed(metric: str, value: float) -> str:
    """A difference with its sign."""
    return f"{'-' if value < 0 else '+'}{written(metric, abs(value))}"


class Column(NamedTuple):
    """What a value is of; `keep` is None where nothing is pruned: such a row says the same at every keep rate."""

    metric: str
    setting: Setting
    keep: float | None


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over seeds; None where one of the values is not finite. Runs of one seed count once, as their mean."""

    line: Line
    column: Column
    value: float | None
    deviation: float | None  # of a sample over the seeds; None for one seed, and for the dense model, which has none
    n: int  # seeds
    stderr: float | None  # mean of the metric's own standard errors
    unit: str
    conditions: list[dict[str, Any]]  # of each value: all else that it depends on
    spread: float | None  # of a time's rounds, in the run where they differ most
    noise: str  # what that spread says in words


class _Value(NamedTuple):
    seed: int
    value: float | None
    stderr: float | None
    unit: str
    conditions: dict[str, Any]


def means_of(runs: Sequence[tuple[Run, list[Line]]]) -> list[Mean]:
    """The means of all values of the finished runs, each with the lines that it fills."""
    groups: dict[tuple[Line, Column], list[_Value]] = {}
    for run, lines in runs:
        if run.status == FINISHED:
            for line, column, value in _values(run, lines[0].method):
                groups.setdefault((line, column), []).append(value)
    return [_mean(line, column, values) for (line, column), values in groups.items()]


def leading(metric: str, means: Mapping[Line, Mean]) -> set[Line]:
    """The lines that are ahead: the best mean, and those within one standard error of the difference from it.

    None where the best has one seed, and where that would be every line. The standard error of a mean is that over its
    seeds and that of the metric itself (over examples, which all seeds share) together; of a perplexity that over the
    seeds alone. A mean without any is taken to have that of the best.
    """
    values = {line: mean.value for line, mean in means.items() if mean.value is not None}
    if len(values) < 2:
        return set()
    best = max(values, key=lambda line: better(metric) * values[line])
    error_of_best = _error(metric, means[best])
    if means[best].deviation is None or error_of_best is None:
        return set()
    ahead = {best}
    for line, value in values.items():
        error = _error(metric, means[line])
        reach = math.hypot(error_of_best, error_of_best if error is None else error)
        if abs(value - values[best]) <= reach:
            ahead.add(line)
    return ahead if len(ahead) < len(values) else set()


def _values(run: Run, method: str) -> list[tuple[Line, Column, _Value]]:
    values = []
    conditions = {key: value for key, value in flattened(run.protocol).items() if not key.endswith("seed")}
    conditions.pop("calibration.count", None)  # which differs by design
    for row, word in zip(run.results, _distinctions(run), strict=True):
        if row["subject"] == NOT_IN_TABLES:
            continue
        protocol = dict(row.get("protocol") or {})
        line = _line(row["subject"], protocol.pop("scope", None), method, run)
        setting = setting_of(protocol) + (((APART, word),) if word else ())
        details = {key: value for key, value in flattened(protocol).items() if key not in dict(setting)}
        if "metrics" in protocol:  # of a mean over tasks
            details["tasks"] = ", ".join(sorted(protocol["metrics"]))
        column = Column(row["metric"], setting, None if line.method == DENSE else run.keep)
        value = _Value(
            seed=run.seed,
            value=_finite(row["value"]),
            stderr=_finite(row.get("stderr")),
            unit=row.get("unit", ""),
            conditions={**_conditions(row["subject"], conditions, run), **details},
        )
        values.append((line, column, value))
    return values


def _mean(line: Line, column: Column, values: Sequence[_Value]) -> Mean:
    seeds: dict[int, list[float | None]] = {}
    for value in values:
        seeds.setdefault(value.seed, []).append(value.value)
    numbers = [[number for number in several if number is not None] for _, several in sorted(seeds.items())]
    finite = sum(map(len, numbers)) == len(values)
    per_seed = np.array([np.mean(several) for several in numbers]) if finite else np.empty(0)
    dense = line.method == DENSE
    stderrs = [value.stderr for value in values if value.stderr is not None]
    timed = [value.conditions for value in values if "spread" in value.conditions]
    noisiest: dict[str, Any] = max(timed, key=lambda each: each["spread"] or 0.0, default={})
    return Mean(
        line=line,
        column=column,
        value=float(per_seed.mean()) if finite else None,
        deviation=float(per_seed.std(ddof=1)) if finite and len(per_seed) > 1 and not dense else None,
        n=1 if dense else len(seeds),
        stderr=float(np.mean(stderrs)) if stderrs else None,
        unit=values[0].unit,
        conditions=[value.conditions for value in values],
        spread=noisiest.get("spread"),
        noise=noise(noisiest),
    )


def _distinctions(run: Run) -> list[str]:
    """What tells rows of a run apart that would share a cell, "" for almost all."""
    protocols = [row.get("protocol") or {} for row in run.results]
    names = [
        f"{(row['subject'], row['metric'], setting_of(protocol))!r} {protocol.get('scope')}"
        for row, protocol in zip(run.results, protocols, strict=True)
    ]
    return distinctions(names, protocols)


def _finite(value: Any) -> float | None:
    """A number, None for what is none: records of others may have NaN or infinity where ours have null."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _line(subject: str, scope: str | None, method: str, run: Run) -> Line:
    if subject == DENSE:
        return Line(model=run.model, task=run.task, method=DENSE)
    if subject == "one_shot":
        importance = run.config.get("importance", {}).get("name", "importance")
        name = f"{importance} alone" + (f", {scope.replace('_', ' ')}" if scope else "")
        return Line(model=run.model, task=run.task, method=name)
    if run.only_recovers and subject != "recovered":  # what came in, which the run that pruned it has measured, too
        return Line(model=run.model, task=run.task, method=f"{method}, as it came into {run.folder.name}")
    tuning = run.tuning if subject in ("tuned", "recovered") else ""
    recovery = run.recovery if subject == "recovered" else ""
    return Line(model=run.model, task=run.task, method=method, tuning=tuning, recovery=recovery)


def _conditions(subject: str, conditions: dict[str, Any], run: Run) -> dict[str, Any]:
    """With the calibration data that the subject owes something to: the dense model none."""
    if subject == DENSE:
        return {key: value for key, value in conditions.items() if not key.startswith("calibration")}
    stages = {"one_shot": STAGES[:1], "pruned": STAGES[:2]}.get(subject, STAGES)
    return {**conditions, "calibration sequences": run.sequences_seen(stages)}


def _error(metric: str, mean: Mean) -> float | None:
    """Standard error of a mean, None where nothing is known of it."""
    seeds = None if mean.deviation is None else mean.deviation / math.sqrt(mean.n)
    if seeds is not None and metric in SHARED_TEXT:
        return seeds
    known = [error for error in (seeds, mean.stderr) if error is not None]
    return math.hypot(*known) if known else None
