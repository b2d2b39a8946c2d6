"""What the verbs evaluate, export and apply are pointed at: a run's folder, a checkpoint, a hub id, a plan."""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from policyprune.config.schema import Classification, Evaluation, LanguageModeling, QuestionAnswering
from policyprune.errors import UsageError
from policyprune.models.modelling_file import brings_only_ours
from policyprune.models.sources import PACKAGE, locate
from policyprune.results.reading import FILE, read_content

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)+")
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
    """The first argument, which is no key=value, and the others."""
    if not arguments or "=" in arguments[0] or arguments[0].startswith(("-", "~", "+")):
        raise UsageError(f"{verb}: name {what} first, as in policyprune {verb} PATH key=value")
    return arguments[0], arguments[1:]


def subject(source: str) -> Subject:
    """Look at what is there; UsageError where nothing is."""
    path = locate("source", source)
    if path is None:
        if not HUB_ID.fullmatch(source):
            raise UsageError(f"source: {source!r} is no folder of a run, no checkpoint and no hub id")
        return Subject(source, source.rpartition("/")[2])
    record = read_content(path / FILE) if path.is_dir() else None
    if record is not None:
        config = record["config"]
        model = config.get("model")
        if not (isinstance(model, dict) and {"name", *LOADING, "trust_remote_code"} <= set(model)):
            raise UsageError(f"source: {source!r} has a record.json without the model that was run")
        return Subject(
            str(path / "checkpoint"), str(model["name"]), path, config, record.get("protocol", {}).get("bos")
        )
    if path.is_file() and path.suffix == ".gguf":
        return Subject(source, path.stem)
    if (path / "config.json").is_file():
        return Subject(source, path.resolve().name)
    raise UsageError(f"source: {source!r} holds neither record.json nor config.json")


def evaluating(source: str, given: list[str]) -> list[str]:
    """Overrides that point `policyprune evaluate` at a subject; a run brings its task and protocol."""
    found = subject(source)
    if not found.checkpoint:
        raise UsageError(f"source: {source!r} has no checkpoint, policyprune export {source} format=hf makes one")
    added = _model(found)
    state = _state(found.source)
    added += [f"state={state}"] if state else []
    if found.config:
        for group, schemas in (
            ("task", (LanguageModeling, Classification, QuestionAnswering)),
            ("evaluation", (Evaluation,)),
        ):
            if not any(own.startswith(f"{group}=") for own in given):
                _store(group, "as_recorded", found.config[group], schemas)
                added.append(f"{group}=as_recorded")
        added.append(f"seed={found.config['seed']}")
        added.append(f"recorded_bos={found.bos or 'null'}")
        if "budget" in found.config:
            added.append(f"sequence_length={found.config['budget']['sequence_length']}")
    return added


def exporting(source: str) -> list[str]:
    """Overrides that point `policyprune export` at a subject."""
    found = subject(source)
    return [*_model(found), *([f"run={quoted(str(found.folder))}"] if found.folder else [])]


def applying(plan: str, given: list[str]) -> list[str]:
    """Overrides that point `policyprune apply` at a plan, and give the model that it was made for."""
    try:
        base = json.loads(Path(plan).read_text(encoding="utf-8"))["base"]
        stated = {key: base[key] for key in ("source", "revision", "dtype")}
    except OSError as error:
        raise UsageError(f"plan: {plan!r} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"plan: {plan!r} is no plan of policyprune") from error
    node = {"defaults": ["/base/model@_here_", "_self_"], "name": "as_planned", **stated}
    ConfigStore.instance().store(group="model", name="as_planned", node=node)
    if any(own.startswith("model.source=") for own in given):
        return [f"plan={quoted(plan)}", "model.revision=null"]
    return [f"plan={quoted(plan)}", f"model.dtype={stated['dtype']}"]


def quoted(text: str) -> str:
    """A string as Hydra's command line takes any string."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _model(found: Subject) -> list[str]:
    added = [f"model.source={quoted(found.source)}", f"model.name={quoted(found.name)}"]
    if found.folder is None:
        return added
    recorded = found.config["model"]
    same = [f"model.{key}={'null' if recorded[key] is None else recorded[key]}" for key in LOADING]
    trusted = brings_only_ours(Path(found.source))  # whatever the record says, which may be anyone's
    return [*added, *same, f"model.trust_remote_code={trusted}"]


def _store(group: str, name: str, values: dict[str, Any], schemas: tuple[type, ...]) -> None:
    for schema in schemas:
        if {own.name for own in dataclasses.fields(schema)} == set(values):
            ConfigStore.instance().store(
                group=group, name=name, node=OmegaConf.merge(OmegaConf.structured(schema), values)
            )
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
