"""Where data comes from when the config leaves it open (`auto`): decided before the fingerprint, for all splits."""

from typing import Any

from policyprune.errors import UsageError

QUESTIONS = "allenai/ai2_arc"  # the data set that the hub is asked for, of those with questions


def task_origin(task: Any) -> str | None:
    """The origin of the splits of a labelled task without a file of their own; None for other tasks.

    `auto` remains where every split has a file. UsageError for embedded files that there are none of.
    """
    wanted = getattr(task, "origin", None)
    if wanted is None:
        return None
    every = dict.fromkeys([task.calibration_split, *task.test_splits])
    needed = [split for split in every if split not in task.data_files]
    missing = [split for split in needed if split not in task.offline_files]
    if wanted == "embedded" and missing:
        raise UsageError(
            f"task.origin: embedded has no {missing[0]!r} split for task={task.name}, use hub or give "
            f"++task.data_files.{missing[0]}=..."
        )
    if wanted == "auto" and needed and task.source is not None:
        return "hub" if missing else _decided("task.origin", task.source)
    return str(wanted)


def questions_origin(evaluation: Any) -> str:
    """The same for the questions of zero-shot tasks; `auto` remains where none are asked."""
    asked = evaluation.zero_shot
    open_yet = asked.tasks and asked.source == "auto"
    return _decided("evaluation.zero_shot.source", QUESTIONS) if open_yet else str(asked.source)


def _decided(key: str, source: str) -> str:
    from policyprune.storage.hub import decided  # takes as long to import as the rest of the command line

    return decided(key, "auto", source)


def decide_origins(config: Any) -> None:
    """Put what was decided into a typed config."""
    if hasattr(config, "task") and hasattr(config.task, "origin"):
        config.task.origin = task_origin(config.task)
    if hasattr(config, "evaluation"):
        config.evaluation.zero_shot.source = questions_origin(config.evaluation)


def decided_as(composed: Any, config: Any) -> tuple[str, ...]:
    """The overrides that make a composed config say what was decided for the typed one."""
    own = {}
    if hasattr(config.task, "origin") and composed.task.origin != config.task.origin:
        own["task.origin"] = config.task.origin
    if composed.evaluation.zero_shot.source != config.evaluation.zero_shot.source:
        own["evaluation.zero_shot.source"] = config.evaluation.zero_shot.source
    return tuple(f"{key}={value}" for key, value in own.items())
