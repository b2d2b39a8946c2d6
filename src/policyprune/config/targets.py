"""What the verbs evaluate, export and apply are pointed at: a run's folder, a checkpoint, a hub id, a plan."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from policyprune.config.composition import key_of, literal, quoted
from policyprune.config.messages import one_line
from policyprune.config.schema import (
    Chat,
    Classification,
    Evaluation,
    Generated,
    LanguageModeling,
    Mixture,
    Model,
    QuestionAnswering,
)
from policyprune.errors import UsageError
from policyprune.storage.record_file import RECORD_FILE, method_name, read_content
from policyprune.storage.sources import PACKAGE, locate

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)+")
SET_BY_TARGET = ("run", "plan", "state")  # keys that the first word of the command line decides
GROUPS = {
    "task": (LanguageModeling, Chat, Mixture, Generated, Classification, QuestionAnswering),
    "evaluation": (Evaluation,),
}
CARRIED = ("teacher", "teacher_revision", "pruned_by", "tuned", "keep")  # what a recovery says of the run before it
LOADING = ("device", "dtype", "attn_implementation", "device_map")  # how a run held its model


@dataclass(frozen=True, kw_only=True)
class Target:
    """A model: `source` is what `model.source` becomes.

    A run has a folder, its recorded config, where BOS stood in its data, and perhaps code of ours in its checkpoint.
    """

    source: str
    name: str
    folder: Path | None = None
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    bos: str | None = None
    trusted: bool = False


def split(verb: str, arguments: list[str], what: str) -> tuple[str, list[str]]:
    """The first argument, which is no key=value unless there is such a path, and the overrides after it."""
    first = arguments[0] if arguments else "-"
    if first.startswith(("-", "~", "+")) or ("=" in first and not os.path.lexists(first)):
        raise UsageError(f"{verb}: name {what} first, as in policyprune {verb} PATH key=value")
    for override in arguments[1:]:
        if key_of(override) in SET_BY_TARGET:
            raise UsageError(f"{override}: not to be set, the PATH of policyprune {verb} decides it")
    return first, arguments[1:]


def find(source: str, only_ours: Callable[[Path], bool]) -> Target:
    """Look at what is there; UsageError where nothing is.

    `only_ours(folder)` tells whether a checkpoint brings no code but what policyprune writes.
    """
    path = locate("source", source)
    if path is None:
        if not HUB_ID.fullmatch(source):
            raise UsageError(f"source: {source!r} is no folder of a run, no checkpoint and no hub id")
        return Target(source=source, name=source.rpartition("/")[2])
    record = read_content(path / RECORD_FILE) if path.is_dir() else None
    if record is not None:
        model = _recorded_model(str(path / RECORD_FILE), record["config"].get("model"))
        config, bos = {**record["config"], "model": model}, record.get("protocol", {}).get("bos")
        checkpoint = path / "checkpoint"
        trusted = only_ours(checkpoint)  # whatever the record says, which may be anyone's
        return Target(source=str(checkpoint), name=model["name"], folder=path, config=config, bos=bos, trusted=trusted)
    if path.is_file() and path.suffix == ".gguf":
        return Target(source=source, name=path.stem)
    if (path / "config.json").is_file():
        return Target(source=source, name=path.resolve().name)
    raise UsageError(f"source: {source!r} holds neither record.json nor config.json")


def recovering(target: Target, overrides: list[str]) -> list[str]:
    """Overrides that point `policyprune recover` at a target; a run brings its dense model and its name in tables."""
    added = evaluating(target, overrides)
    config = target.config
    if "teacher" in config:  # of a recovery, which is gone on with
        stated = {key: config.get(key) for key in CARRIED}
    elif "budget" in config:
        of_run = (config["model"]["source"], config["model"]["revision"], method_name(config), _done(config, "tuning"))
        stated = dict(zip(CARRIED, (*of_run, config["budget"].get("keep")), strict=True))
    else:
        return added
    stated["recovered"] = " + ".join(filter(None, (config.get("recovered"), _done(config, "recovery")))) or None
    return [*added, *(f"{key}={_stated(value)}" for key, value in stated.items())]


def _done(config: dict[str, Any], group: str) -> str | None:
    """The option of a group, None where it does nothing."""
    name = config.get(group, {}).get("name", "none")
    return None if name == "none" else str(name)


def _stated(value: Any) -> str:
    return "null" if value is None else str(value) if isinstance(value, float) else quoted(str(value))


def evaluating(target: Target, overrides: list[str]) -> list[str]:
    """Overrides that point `policyprune evaluate` at a target; a run brings its task and protocol."""
    source = str(target.folder or target.source)
    _check_finished(target)
    if target.folder is not None and not Path(target.source).is_dir():
        raise UsageError(f"source: {source!r} has no checkpoint, policyprune export {source} format=hf makes one")
    added = _model(target)
    state = _state(target.source)
    added += [f"state={state}"] if state else []
    if target.config:
        for group, schemas in GROUPS.items():
            if not any(override.startswith(f"{group}=") for override in overrides):
                _store(source, group, target.config.get(group), schemas)
                added.append(f"{group}=as_recorded")
        added.append(f"seed={_number(source, target.config, 'seed')}")
        added.append(f"recorded_bos={quoted(target.bos) if isinstance(target.bos, str) else 'null'}")
        if "budget" in target.config:
            added.append(f"sequence_length={_number(source, target.config['budget'], 'sequence_length')}")
    return added


def exporting(target: Target) -> list[str]:
    """Overrides that point `policyprune export` at a target."""
    _check_finished(target)
    return [*_model(target), *([f"run={quoted(str(target.folder))}"] if target.folder else [])]


def _check_finished(target: Target) -> None:
    """UsageError for a run that has neither a checkpoint nor a plan."""
    if target.folder is None or Path(target.source).is_dir() or (target.folder / "plan.json").is_file():
        return
    raise UsageError(f"source: {str(target.folder)!r} is a run that is not finished, the same command goes on with it")


def applying(plan: str, overrides: list[str]) -> list[str]:
    """Overrides that point `policyprune apply` at a plan, and give the model that it was made for."""
    try:
        content = json.loads(Path(plan).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"plan: {plan!r} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"plan: {plan!r} is no plan of policyprune: it is no JSON") from error
    base = content.get("base") if isinstance(content, dict) else None
    if not isinstance(base, dict) or not all(isinstance(base.get(key), str) for key in ("source", "dtype")):
        raise UsageError(f"plan: {plan!r} is no plan of policyprune: it names no model")
    stated = literal({key: base.get(key) for key in ("source", "revision", "dtype")})
    node = {"name": "as_planned", **stated}
    ConfigStore.instance().store(group="model", name="as_planned", node=node)
    if any(override.startswith("model.source=") for override in overrides):
        return [f"plan={quoted(plan)}", "model.revision=null"]
    return [f"plan={quoted(plan)}", f"model.dtype={quoted(base['dtype'])}"]


def _recorded_model(path: str, stated: Any) -> dict[str, Any]:
    """The model of a record as the schema types it; UsageError where it does not say how it was held."""
    known = {field.name for field in dataclasses.fields(Model)}
    model = {key: value for key, value in stated.items() if key in known} if isinstance(stated, dict) else {}
    absent = {"name", *LOADING} - set(model)
    if absent:
        raise UsageError(f"source: {path!r} has no model.{min(absent)}, so the model cannot be loaded as the run did")
    return _typed(path, "model", Model, model)


def _typed(path: str, key: str, schema: type, values: dict[str, Any]) -> dict[str, Any]:
    """The values of a file as the schema types them, strings as they stand there; UsageError for other types."""
    try:
        node = OmegaConf.merge(OmegaConf.structured(schema), literal(values))
        typed = OmegaConf.to_container(node, resolve=True)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise UsageError(f"source: {path!r}, {key}: {one_line(error)}") from error
    assert isinstance(typed, dict)
    return {str(name): value for name, value in typed.items()}


def _number(source: str, values: Any, key: str) -> int:
    number = values.get(key) if isinstance(values, dict) else None
    if not isinstance(number, int) or isinstance(number, bool):
        raise UsageError(f"source: {source!r} has a record.json whose {key} is {number!r}, not a whole number")
    return number


def _model(target: Target) -> list[str]:
    added = [f"model.source={quoted(target.source)}", f"model.name={quoted(target.name)}"]
    if target.folder is None:
        return added
    recorded = target.config["model"]
    same = [f"model.{key}={'null' if recorded[key] is None else quoted(recorded[key])}" for key in LOADING]
    return [*added, *same, f"model.trust_remote_code={target.trusted}"]


def _store(source: str, group: str, values: Any, schemas: tuple[type, ...]) -> None:
    """Make a group of a record an option of that group."""
    for schema in schemas:
        if isinstance(values, dict) and {field.name for field in dataclasses.fields(schema)} == set(values):
            typed = _typed(f"{source}/record.json", group, schema, values)
            node = OmegaConf.merge(OmegaConf.structured(schema), literal(typed))
            ConfigStore.instance().store(group=group, name="as_recorded", node=node)
            return
    raise UsageError(f"{group}: the run was recorded by another version of policyprune, give {group}=...")


def _state(source: str) -> str | None:
    """Digest of the names, sizes and times of a local checkpoint's files; None for a hub id."""
    path = None if source.startswith(PACKAGE) else locate("source", source)
    if path is None:
        return None
    files = sorted(file for file in (path.iterdir() if path.is_dir() else [path]) if file.suffix != ".md")
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return "w" + hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:12]
