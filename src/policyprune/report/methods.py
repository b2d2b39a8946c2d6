"""What a row of a table is called: the method, and the settings in which its runs differ."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from policyprune.report.runs import Run, flattened

NEVER = ("model.", "evaluation.", "export.", "tracker.", "safety.")  # not part of a method, or the same result anyway
ELSEWHERE = ("seed", "force", "method", "budget.keep", "tuning.name")  # seeds are averaged, the others have columns


def method_of(run: Run) -> str:
    """The config's `method`; where it names none, the optimizer and the metric that it begins from."""
    config = run.config
    named = config.get("method")
    named = named.get("name") if isinstance(named, dict) else named
    if named:
        return str(named)
    optimizer, importance = (str(config.get(group, {}).get("name", "")) for group in ("optimizer", "importance"))
    if not optimizer:
        return "fine-tuned" if "training" in config else f"evaluated, {run.folder.name}"
    return importance if optimizer == "one_shot" else f"{optimizer} from {importance}"


def row_names(runs: Sequence[Run]) -> dict[int, str]:
    """The row of each run, by its place in the list.

    Runs of one method, model, task, tuning and keep rate that differ in more than the seed get the values in which they
    differ behind the method's name, so that an ablation has a row per value.
    """
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for number, run in enumerate(runs):
        groups[(run.model, run.task, method_of(run), run.tuning, run.keep)].append(number)
    settings = [_settings(run) for run in runs]
    differing: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for (model, task, method, _, _), members in groups.items():
        differing[model, task, method] |= _differing([settings[number] for number in members])
    return {
        number: _name(method_of(run), settings[number], differing[run.model, run.task, method_of(run)])
        for number, run in enumerate(runs)
    }


def _settings(run: Run) -> dict[str, Any]:
    return {
        key: value
        for key, value in flattened(run.config).items()
        if key not in ELSEWHERE
        and not key.endswith(".seed")
        and not key.startswith(NEVER)
        and (not key.startswith("task.") or key.startswith("task.calibration."))
    }


def _differing(settings: Sequence[dict[str, Any]]) -> set[str]:
    keys = {key for own in settings for key in own}
    found = {key for key in keys if len({str(own[key]) for own in settings if key in own}) > 1}
    renamed = tuple(key.removesuffix("name") for key in found if key.endswith(".name"))
    return {key for key in found if key.endswith(".name") or not key.startswith(renamed)}


def _name(method: str, settings: dict[str, Any], keys: set[str]) -> str:
    told = [f"{_short(key)}={_value(settings[key])}" for key in sorted(keys) if key in settings]
    return f"{method} ({', '.join(told)})" if told else method


def _short(key: str) -> str:
    return key.removesuffix(".name").removeprefix("optimizer.").removeprefix("task.")


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)
