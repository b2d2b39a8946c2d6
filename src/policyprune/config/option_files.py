"""An option's file in conf/, read without Hydra. No torch here."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from policyprune.config.registry import conf_dir, options
from policyprune.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Preset:
    """An option's class, its values, and what it sets and chooses in other groups."""

    kind: str
    values: dict[str, Any]
    sets: dict[str, dict[str, Any]]
    chooses: dict[str, str]


def read_option(group: str, name: str) -> Preset:
    """What an option's file says; UsageError for a name that the group lacks."""
    if name not in options(group):
        raise UsageError(f"{group}: {name!r} is not one of {', '.join(options(group))}")
    return _file(group, name)


def read_class(group: str, name: str) -> Preset:
    """What comes with an option that is no preset: what the file of its class chooses."""
    return _file(group, name) if name in options(group) else Preset(kind=name, values={}, sets={}, chooses={})


@cache
def _file(group: str, name: str) -> Preset:
    path = conf_dir() / group / f"{name}.yaml"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    content = yaml.safe_load(text) or {}
    kind: str = name
    values: dict[str, Any] = {}
    chooses: dict[str, str] = {}
    for entry in content.pop("defaults", []):
        if isinstance(entry, dict):  # override /optimizer: x, or override /optimizer@_global_.optimizer: x
            ((key, choice),) = entry.items()
            chooses[key.removeprefix("override /").partition("@")[0]] = choice
        elif entry.startswith("/schema/"):  # /schema/optimizer/ppo@_here_
            kind = entry.partition("@")[0].rpartition("/")[2]
        elif entry != "_self_":  # another option of the group, which this one is built on
            kind, values = _file(group, entry).kind, _file(group, entry).values
    if "@package _global_" not in text:
        return Preset(kind=kind, values={**values, **content}, sets={}, chooses=chooses)
    sets = {other: content[other] for other in content if isinstance(content[other], dict)}
    return Preset(kind=kind, values=values, sets=sets, chooses=chooses)
