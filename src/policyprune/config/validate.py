"""From a composed Hydra config to a checked one and its fingerprint; whether the files that it names are there."""

import dataclasses
import hashlib
import json
import os
import re
from copy import deepcopy
from typing import Any, get_args

from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf

from policyprune.config.combinations import check_combinations, check_evaluating, check_evaluation, check_exporting
from policyprune.config.fields import check
from policyprune.config.schema import (
    Applying,
    Calibrated,
    Chat,
    Config,
    Evaluating,
    Exporting,
    Finetuning,
    Generated,
    Labelled,
    LanguageModeling,
    Mixture,
    Recovering,
    Trained,
    Wandb,
)
from policyprune.config.texts import corpus_of, parts_of, test_of, training_corpus
from policyprune.errors import UsageError
from policyprune.storage.sources import check_source, locate

Run = Config | Finetuning | Recovering | Evaluating  # what makes a run, with a folder and a record
VERBS = {"training": "finetuned", "recovery": "recovered"}  # words in the names of folders
UNNAMED = re.compile(r"[^\w.,+=@() -]+")  # stands in no folder's name; a run's name may come from anyone's file
LONGEST = 60  # characters of a name in the folder's, which the digest tells apart
UNFINGERPRINTED = ("force", "tracker", "safety", "hydra", "method")
QUESTIONS = "allenai/ai2_arc"  # the data set that the hub is asked for, of those with questions


def validate(composed: DictConfig) -> Any:
    """Return the typed config (`Config`, or that of another verb).

    UsageError for unknown keys, missing or wrong values and impossible combinations. Where data may come from several
    places (`auto`), it is decided here, before the fingerprint.
    """
    for key in sorted(OmegaConf.missing_keys(composed)):
        if not key.startswith("hydra"):
            raise UsageError(f"{key}: no value given, set it on the command line ({key}=...)")
    try:
        config = OmegaConf.to_object(composed)
    except MissingMandatoryValue as error:
        raise UsageError(f"{error.full_key}: no value given") from error
    assert isinstance(config, Run | Exporting | Applying)
    fill(config)
    _check(OmegaConf.to_container(composed, resolve=True), config, "")
    if isinstance(config, Config):
        check_combinations(config)
    elif isinstance(config, Exporting):
        check_exporting(config)
    elif isinstance(config, Evaluating | Recovering):
        check_evaluating(config)
    config.model.fine_tuned = {}  # `model.source` has been looked up there, and nothing else has
    if isinstance(config, Run):
        check_evaluation(config.evaluation, config.task)
        decide_origins(config)
    return config


def fill(config: Any) -> None:
    """Put values where None stands for another of the run's: its seed, all of its calibration sequences.

    `config` is that of a verb, typed or composed.
    """
    verb = OmegaConf.get_type(config)
    if verb not in get_args(Run):
        return
    calibration = config.task.calibration
    if calibration.seed is None:
        calibration.seed = config.seed
    if verb in (Config, Recovering) and OmegaConf.get_type(config.tracker) is Wandb and config.tracker.mode is None:
        config.tracker.mode = os.environ.get("WANDB_MODE", "offline")
    if verb is not Config:
        return
    if config.importance.sequences is None:
        config.importance.sequences = calibration.count
    tuning = OmegaConf.get_type(config.tuning)
    if tuning is not None and issubclass(tuning, Calibrated) and config.tuning.sequences is None:
        config.tuning.sequences = calibration.count


def _check(raw: Any, config: Any, prefix: str) -> None:
    fields = {field.name: field for field in dataclasses.fields(config)}
    for key in raw:
        if key not in fields:
            raise UsageError(f"{prefix}{key}: unknown key, the choices are {', '.join(fields)}")
    values = {key: getattr(config, key) for key in fields}
    for key, value in values.items():  # first what stands here: groups may take it over, as task.calibration.seed does
        if not dataclasses.is_dataclass(value):
            check(f"{prefix}{key}", value, fields[key].metadata)
    for key, value in values.items():
        if dataclasses.is_dataclass(value):
            _check(raw[key], value, f"{prefix}{key}.")


def fingerprint(config: Run) -> str:
    """Hash of everything that can change the result: 16 hex digits."""
    return _digest({k: v for k, v in dataclasses.asdict(config).items() if k not in UNFINGERPRINTED})


def run_label(composed: DictConfig) -> str:
    """Folder name of a run: what was composed, and a short hash that tells apart what the name does not say."""
    composed = deepcopy(composed)
    fill(composed)
    content: dict[str, Any] = {
        str(key): OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        for key, node in composed.items()
        if key not in UNFINGERPRINTED
    }
    if "origin" in content.get("task", {}):
        content["task"]["origin"] = task_origin(composed.task)
    if "evaluation" in content:
        content["evaluation"]["zero_shot"]["source"] = questions_origin(composed.evaluation)
    groups: list[str] = [group for group in ("model", "task", "granularity", "budget", "optimizer") if group in content]
    groups += ["recovery"] if content.get("recovery", {}).get("name", "none") != "none" else []
    names: dict[str, str] = {group: UNNAMED.sub("-", str(content[group]["name"]))[:LONGEST] for group in groups}
    if composed.get("method"):
        names["optimizer"] = re.sub(r"[^\w.]+", "_", composed.method)
    if "budget" in names:
        names["budget"] += f"{content['budget']['keep']:g}"
    else:
        names["verb"] = next((word for key, word in VERBS.items() if key in content), "evaluated")
    return f"{'-'.join(names.values())}-s{content['seed']}-{_digest(content)[:8]}"


def _digest(content: dict[str, Any]) -> str:
    if content.get("recovery", {}).get("name") == "none":  # such a run is what it was before there were others
        content = {key: value for key, value in content.items() if key != "recovery"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def check_sources(config: Run) -> None:
    """UsageError for a file, directory or package that the config names and this machine lacks."""
    check_source(config.model.source)
    if isinstance(config, Recovering) and config.teacher is not None:
        check_source(config.teacher)
    for key, path in _files(config):
        file = locate(key, path)
        if file is None:
            raise UsageError(f"{key}: {path!r} does not exist")
        if file.is_dir() and key in ("task.files", "task.test_files", "evaluation.texts"):
            raise UsageError(f"{key}: {path!r} is a folder, name a file")


def _files(config: Run) -> list[tuple[str, str]]:
    """The files that a config names, each with its key."""
    task = config.task
    files: list[tuple[str, str]] = []
    if isinstance(task, LanguageModeling):
        files += [("task.files", path) for path in task.files or []]
        files += [("task.test_files", path) for path in task.test_files or []]
        files += [("task.template", task.template)] if isinstance(task, Chat) and task.template else []
    elif isinstance(task, Labelled):
        files += [(f"task.data_files.{split}", path) for split, path in task.data_files.items()]
        if task.origin == "embedded":
            files += [(f"task.offline_files.{split}", path) for split, path in task.offline_files.items()]
    elif isinstance(task, Mixture):
        files += [("task.parts", path) for part in parts_of(task) for path in part.files or []]
    elif isinstance(task, Generated):
        files += [("task.prompts", task.prompts)] if task.prompts else []
        files += [("task.test_task", path) for test in test_of(task) for path in test.files or []]
    for text in config.evaluation.texts:
        files += [("evaluation.texts", path) for path in corpus_of(text).files or []]
    if isinstance(config, Config | Recovering) and isinstance(config.recovery, Trained) and config.recovery.task:
        corpus = training_corpus(config.recovery.task, "recovery.task")
        files += [("recovery.task", path) for path in corpus.files or []]
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


def decide_origins(config: Run) -> None:
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
