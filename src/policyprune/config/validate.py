"""From a composed Hydra config to a checked `Config`, and its fingerprint."""

import dataclasses
import hashlib
import json
import os
import re
from copy import deepcopy
from typing import Any

from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf

from policyprune.config.combinations import check_combinations, check_evaluating, check_exporting
from policyprune.config.fields import check
from policyprune.config.origins import decide_origins, questions_origin, task_origin
from policyprune.config.schema import Applying, Calibrated, Config, Evaluating, Exporting, Finetuning, Wandb
from policyprune.errors import UsageError

UNNAMED = re.compile(r"[^\w.,+=@() -]+")  # stands in no folder's name; a run's name may come from anyone's file
LONGEST = 60  # characters of a name in the folder's, which the digest tells apart
UNFINGERPRINTED = ("force", "tracker", "safety", "hydra", "method")


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
    assert isinstance(config, Config | Finetuning | Evaluating | Exporting | Applying)
    fill(config)
    _check(OmegaConf.to_container(composed, resolve=True), config, "")
    if isinstance(config, Config):
        check_combinations(config)
    elif isinstance(config, Exporting):
        check_exporting(config)
    elif isinstance(config, Evaluating):
        check_evaluating(config)
    config.model.fine_tuned = {}  # `model.source` has been looked up there, and nothing else has
    if isinstance(config, Config | Finetuning | Evaluating):
        decide_origins(config)
    return config


def fill(config: Any) -> None:
    """Put values where None stands for another of the run's: its seed, all of its calibration sequences.

    `config` is that of a verb, typed or composed.
    """
    verb = OmegaConf.get_type(config)
    if verb not in (Config, Finetuning, Evaluating):
        return
    calibration = config.task.calibration
    if calibration.seed is None:
        calibration.seed = config.seed
    if verb is not Config:
        return
    if config.importance.sequences is None:
        config.importance.sequences = calibration.count
    tuning = OmegaConf.get_type(config.tuning)
    if tuning is not None and issubclass(tuning, Calibrated) and config.tuning.sequences is None:
        config.tuning.sequences = calibration.count
    if OmegaConf.get_type(config.tracker) is Wandb and config.tracker.mode is None:
        config.tracker.mode = os.environ.get("WANDB_MODE", "offline")


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


def fingerprint(config: Config | Finetuning | Evaluating) -> str:
    """Hash of everything that can change the result: 16 hex digits."""
    content = {k: v for k, v in dataclasses.asdict(config).items() if k not in UNFINGERPRINTED}
    return _digest(content)


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
    names: dict[str, str] = {group: UNNAMED.sub("-", str(content[group]["name"]))[:LONGEST] for group in groups}
    if composed.get("method"):
        names["optimizer"] = re.sub(r"[^\w.]+", "_", composed.method)
    if "budget" in names:
        names["budget"] += f"{content['budget']['keep']:g}"
    else:
        names["verb"] = "finetuned" if "training" in content else "evaluated"
    return f"{'-'.join(names.values())}-s{content['seed']}-{_digest(content)[:8]}"


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
