"""What the verbs evaluate, export and apply are pointed at: a run's folder, a checkpoint, a hub id, a plan."""

import dataclasses
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from policyprune.config.literal import literal, quoted
from policyprune.config.messages import one_line
from policyprune.config.schema import Classification, Evaluation, LanguageModeling, Model, QuestionAnswering
from policyprune.errors import UsageError
from policyprune.models.modelling_file import brings_only_ours
from policyprune.storage.record_file import RECORD_FILE, read_content
from policyprune.storage.sources import PACKAGE, locate

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)+")
NAMED_FIRST = ("run", "plan", "state")  # keys that the first word of the command line decides
GROUPS = {"task": (LanguageModeling, Classification, QuestionAnswering), "evaluation": (Evaluation,)}
LOADING = ("device", "dtype", "attn_implementation", "device_map")  # how a run held its model


@dataclass(frozen=True)
class Subject:
    """`source` for model.source; for a run its folder, its recorded config, and where BOS stood in its data."""

    source: str
    name: str
    folder: Path | None = None
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    bos: str | None = None

    @property
    def checkpoint(self) -> bool:
        """Whether there is a checkpoint to load: a run may have written none."""
        return self.folder is None or (self.folder / "checkpoint").is_dir()


def split(verb: str, arguments: list[str], what: str) -> tuple[str, list[str]]:
    """The first argument, which is no key=value unless there is such a path, and the others."""
    first = arguments[0] if arguments else "-"
    if first.startswith(("-", "~", "+")) or ("=" in first and not os.path.lexists(first)):
        raise UsageError(f"{verb}: name {what} first, as in policyprune {verb} PATH key=value")
    for own in arguments[1:]:
        if own.partition("=")[0].lstrip("+~") in NAMED_FIRST:
            raise UsageError(f"{own}: not to be set, policyprune {verb} PATH says it")
    return first, arguments[1:]


def subject(source: str) -> Subject:
    """Look at what is there; UsageError where nothing is."""
    path = locate("source", source)
    if path is None:
        if not HUB_ID.fullmatch(source):
            raise UsageError(f"source: {source!r} is no folder of a run, no checkpoint and no hub id")
        return Subject(source, source.rpartition("/")[2])
    record = read_content(path / RECORD_FILE) if path.is_dir() else None
    if record is not None:
        config, bos = record["config"], record.get("protocol", {}).get("bos")
        model = _held(str(path / RECORD_FILE), config.get("model"))
        return Subject(str(path / "checkpoint"), model["name"], path, {**config, "model": model}, bos)
    if path.is_file() and path.suffix == ".gguf":
        return Subject(source, path.stem)
    if (path / "config.json").is_file():
        return Subject(source, path.resolve().name)
    raise UsageError(f"source: {source!r} holds neither record.json nor config.json")


def evaluating(source: str, given: list[str]) -> list[str]:
    """Overrides that point `policyprune evaluate` at a subject; a run brings its task and protocol."""
    found = subject(source)
    if not found.checkpoint and found.folder is not None and not (found.folder / "plan.json").is_file():
        raise UsageError(f"source: {source!r} is a run that is not finished, its own command goes on with it")
    if not found.checkpoint:
        raise UsageError(f"source: {source!r} has no checkpoint, policyprune export {source} format=hf makes one")
    added = _model(found)
    state = _state(found.source)
    added += [f"state={state}"] if state else []
    if found.config:
        for group, schemas in GROUPS.items():
            if not any(own.startswith(f"{group}=") for own in given):
                _store(source, group, found.config.get(group), schemas)
                added.append(f"{group}=as_recorded")
        added.append(f"seed={_number(source, found.config, 'seed')}")
        added.append(f"recorded_bos={quoted(found.bos) if isinstance(found.bos, str) else 'null'}")
        if "budget" in found.config:
            added.append(f"sequence_length={_number(source, found.config['budget'], 'sequence_length')}")
    return added


def exporting(source: str) -> list[str]:
    """Overrides that point `policyprune export` at a subject."""
    found = subject(source)
    return [*_model(found), *([f"run={quoted(str(found.folder))}"] if found.folder else [])]


def applying(plan: str, given: list[str]) -> list[str]:
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
    node = {"defaults": ["/base/model@_here_", "_self_"], "name": "as_planned", **stated}
    ConfigStore.instance().store(group="model", name="as_planned", node=node)
    if any(own.startswith("model.source=") for own in given):
        return [f"plan={quoted(plan)}", "model.revision=null"]
    return [f"plan={quoted(plan)}", f"model.dtype={quoted(base['dtype'])}"]


def _held(path: str, stated: Any) -> dict[str, Any]:
    """The model of a record as the schema types it; a model that was never held has no name."""
    known = {own.name for own in dataclasses.fields(Model)}
    model = {key: value for key, value in stated.items() if key in known} if isinstance(stated, dict) else {}
    absent = {"name", *LOADING} - set(model)
    if absent:
        raise UsageError(f"source: {path!r} has no model.{min(absent)}, so it does not tell the model that was run")
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


def _model(found: Subject) -> list[str]:
    added = [f"model.source={quoted(found.source)}", f"model.name={quoted(found.name)}"]
    if found.folder is None:
        return added
    recorded = found.config["model"]
    same = [f"model.{key}={'null' if recorded[key] is None else quoted(recorded[key])}" for key in LOADING]
    trusted = brings_only_ours(Path(found.source))  # whatever the record says, which may be anyone's
    return [*added, *same, f"model.trust_remote_code={trusted}"]


def _store(source: str, group: str, values: Any, schemas: tuple[type, ...]) -> None:
    """Make a group of a record an option of that group."""
    for schema in schemas:
        if isinstance(values, dict) and {own.name for own in dataclasses.fields(schema)} == set(values):
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
    files = sorted(own for own in (path.iterdir() if path.is_dir() else [path]) if own.suffix != ".md")
    stats = [(own.name, own.stat().st_size, own.stat().st_mtime_ns) for own in files if own.is_file()]
    return "w" + hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:12]
