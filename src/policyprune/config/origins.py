"""Where the model and the data of a config come from: whether what it names is there, and what `auto` comes to."""

from typing import Any

from policyprune.config.schema import Config, Evaluating, Finetuning, Labelled, LanguageModeling
from policyprune.errors import UsageError
from policyprune.storage.sources import check_source, locate

QUESTIONS = "allenai/ai2_arc"  # the data set that the hub is asked for, of those with questions


def check_sources(config: Config | Finetuning | Evaluating) -> None:
    """UsageError for a file, directory or package that the config names and this machine lacks."""
    check_source(config.model.source)
    for key, path in _files(config):
        file = locate(key, path)
        if file is None:
            raise UsageError(f"{key}: {path!r} does not exist")
        if file.is_dir() and key in ("task.files", "task.test_files"):
            raise UsageError(f"{key}: {path!r} is a folder, name a file")


def _files(config: Config | Finetuning | Evaluating) -> list[tuple[str, str]]:
    """The files that a config names, each with its key."""
    task = config.task
    files: list[tuple[str, str]] = []
    if isinstance(task, LanguageModeling):
        files += [("task.files", path) for path in task.files or []]
        files += [("task.test_files", path) for path in task.test_files or []]
    elif isinstance(task, Labelled):
        files += [(f"task.data_files.{split}", path) for split, path in task.data_files.items()]
        if task.origin == "embedded":
            files += [(f"task.offline_files.{split}", path) for split, path in task.offline_files.items()]
    if isinstance(config, Config):
        files += config.optimizer.files().items()
    return files


def task_origin(task: Any) -> str:
    """The origin of the splits of a labelled task without a file of their own.

    `auto` remains where every split has a file. UsageError for embedded files that there are none of.
    """
    splits = dict.fromkeys([task.calibration_split, *task.test_splits])
    needed = [split for split in splits if split not in task.data_files]
    missing = [split for split in needed if split not in task.offline_files]
    if task.origin == "embedded" and missing:
        raise UsageError(
            f"task.origin: embedded has no {missing[0]!r} split for task={task.name}, use hub or give "
            f"++task.data_files.{missing[0]}=..."
        )
    if task.origin == "auto" and needed and task.source is not None:
        return "hub" if missing else _decided("task.origin", task.source)
    return str(task.origin)


def questions_origin(evaluation: Any) -> str:
    """The same for the questions of zero-shot tasks; `auto` remains where none are asked."""
    zero_shot = evaluation.zero_shot
    if zero_shot.tasks and zero_shot.source == "auto":
        return _decided("evaluation.zero_shot.source", QUESTIONS)
    return str(zero_shot.source)


def _decided(key: str, source: str) -> str:
    from policyprune.storage.hub import decided  # takes as long to import as the rest of the command line

    return decided(key, "auto", source)


def decide_origins(config: Config | Finetuning | Evaluating) -> None:
    """Put what `auto` came to into a typed config."""
    if isinstance(config.task, Labelled):
        config.task.origin = task_origin(config.task)
    config.evaluation.zero_shot.source = questions_origin(config.evaluation)


def decided_as(composed: Any, config: Config) -> tuple[str, ...]:
    """The overrides that make a composed config say what was decided for the typed one."""
    overrides = []
    if isinstance(config.task, Labelled) and composed.task.origin != config.task.origin:
        overrides.append(f"task.origin={config.task.origin}")
    if composed.evaluation.zero_shot.source != config.evaluation.zero_shot.source:
        overrides.append(f"evaluation.zero_shot.source={config.evaluation.zero_shot.source}")
    return tuple(overrides)
