"""From a command line to the typed configs of its runs."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from policyprune.config.fields import check_added
from policyprune.config.options import conf_dir, groups, options
from policyprune.config.validate import validate
from policyprune.errors import UsageError

MERGED = ("export",)  # groups of which several options may be given


@dataclass(frozen=True)
class Point:
    """One run: its typed config, and the folders that Hydra would use for it."""

    overrides: tuple[str, ...]
    config: Any
    run: str | None = None  # None where only the job itself will tell, as with ${hydra:job.num}
    sweep: str | None = None
    job: str | None = None  # inside `sweep`


def composed(config_name: str, overrides: Sequence[str], added: Sequence[str] = ()) -> Point:
    """Compose and check one run. UsageError for options that are not there; Hydra's and OmegaConf's errors.

    `added` are overrides that no user gave.
    """
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        given = _parsed(overrides)
        for override in given:
            if override.input_line not in added:
                _check_options(override)
        config = hydra.compose(config_name, list(overrides), return_hydra_config=True)
        for override in given:
            if override.key_or_group.startswith("hydra.") and not override.is_delete():
                check_added(config, override.key_or_group)
        folders = {"run": "hydra.run.dir", "sweep": "hydra.sweep.dir", "job": "hydra.sweep.subdir"}
        named = {name: _folder(config, key) for name, key in folders.items()}
        with open_dict(config):
            del config["hydra"]
        return Point(tuple(overrides), validate(config), **named)


def points(config_name: str, given: Namespace, added: Sequence[str]) -> list[Point]:
    """All runs of a command line. Those of another sweeper than Hydra's own are known when they begin."""
    if not sweeps(given):
        return [composed(config_name, given.overrides, added)]
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        overrides = _parsed(given.overrides)
    if any(own.key_or_group.startswith(("hydra/sweeper", "hydra.sweeper")) for own in overrides):
        return []
    (found,) = BasicSweeper.split_arguments([own for own in overrides if own.key_or_group != "hydra.mode"], None)
    made = []
    for point in found:
        try:
            made.append(composed(config_name, point, added))
        except UsageError as error:
            raise UsageError(f"{error} (in the job {' '.join(point)})") from error
    return made


def _folder(config: DictConfig, key: str) -> str | None:
    try:
        value = OmegaConf.select(config, key)
    except OmegaConfBaseException:
        return None
    return "" if value is None else str(value)


def sweeps(given: Namespace) -> bool:
    """Whether a command line asks for several runs."""
    modes = [own.partition("=")[2] for own in given.overrides if own.lstrip("+").startswith("hydra.mode=")]
    return bool(given.multirun or (modes and modes[-1].strip("'\"").upper() == "MULTIRUN"))


def _parsed(overrides: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    found: list[Override] = parser.parse_overrides(list(overrides))
    return found


def _check_options(override: Override) -> None:
    """UsageError for an option that a group lacks, in the words of the user."""
    group = override.key_or_group
    if not group:
        raise UsageError(f"{override.input_line}: names no key, give key=value")
    if group not in groups() or override.is_delete():
        return
    if override.is_sweep_override():
        return  # Hydra wants --multirun for it, or the points are checked one by one
    value: Any = override.value()
    for name in value if group in MERGED and isinstance(value, list) else [value]:
        if name not in options(group):
            raise UsageError(
                f"{group}: {'null' if name is None else repr(name)} is not one of {', '.join(options(group))}"
            )
