"""The jobs of a sweep: every point of its axes, composed and checked before the first one begins."""

import contextlib
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from policyprune.config.literal import quoted
from policyprune.config.messages import one_line
from policyprune.config.options import conf_dir, groups, sweeps, sweeps_dir
from policyprune.config.origins import check_sources, decided_as
from policyprune.config.places import place
from policyprune.config.schema import Config, Wandb
from policyprune.config.store import register
from policyprune.config.validate import run_label, validate
from policyprune.errors import UsageError


@dataclass(frozen=True)
class Job:
    """One run of a sweep. `overrides` are its point on the axes, as they may stand on the command line."""

    overrides: tuple[str, ...]
    config: Config
    folder: Path
    decided: tuple[str, ...] = ()  # overrides for what `auto` came to, so that no process of the sweep decides anew


@dataclass(frozen=True)
class Sweep:
    """A composed sweep: `master` is the config that Hydra's launchers start from, with Hydra's own node.

    `given` are the overrides of the command line that go to the jobs.
    """

    name: str
    given: list[str]
    master: DictConfig
    loader: ConfigLoader

    @property
    def folder(self) -> Path:
        """Where the runs are, a folder for each."""
        return Path(self.master.hydra.sweep.dir)


@contextlib.contextmanager
def opened(name: str, overrides: list[str]) -> Iterator[Sweep]:
    """Compose the sweep; Hydra knows of it inside the block. UsageError in one line for what cannot be composed."""
    if name not in sweeps():
        raise UsageError(f"sweep: {name!r} is not one of {', '.join(sweeps())}")
    if any(own.partition("=")[0].lstrip("+") in ("hydra.sweep.subdir", "hydra.mode") for own in overrides):
        raise UsageError("hydra.sweep.subdir, hydra.mode: a sweep sets them itself, hydra.sweep.dir is its folder")
    register()
    hydras = [own for own in overrides if own.lstrip("+~").startswith(("hydra.", "hydra/"))]
    settings = [
        f"hydra.searchpath=[{quoted(conf_dir().as_uri())}]",
        "hydra.mode=MULTIRUN",
        f"hydra.sweep.dir=outputs/sweeps/{name}",
    ]
    with hydra.initialize_config_dir(str(sweeps_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        with _one_line():
            master = loader.load_configuration(name, [*settings, *hydras], RunMode.MULTIRUN)
        with open_dict(master):
            master.hydra.job.name = "policyprune"
        place("hydra.sweep.dir", str(master.hydra.sweep.dir))
        yield Sweep(name, [own for own in overrides if own not in hydras], master, loader)


def points(sweep: Sweep) -> list[list[str]]:
    """The product of the axes in the file and on the command line, which replaces an axis of the file.

    Each point is a list of overrides. UsageError for an axis that still needs its values.
    """
    filed = sweep.master.hydra.sweeper.get("params") or OmegaConf.create({})
    parser = OverridesParser.create(config_loader=sweep.loader)
    with _one_line():
        given = parser.parse_overrides(sweep.given)
        named = {override.get_key_element() for override in given}
        axes = [str(key) for key in filed if key not in named]
        for key in axes:
            if OmegaConf.is_missing(filed, key):
                raise UsageError(f"{key}: no value given, set it on the command line ({key}=...)")
        fixed = parser.parse_overrides([f"{key}={filed[key]}" for key in axes])
        (found,) = BasicSweeper.split_arguments([*fixed, *given], None)
    return found


def jobs(sweep: Sweep, at: list[list[str]]) -> list[Job]:
    """The jobs at some points. UsageError for the first one that is wrong, and for two that have the same folder."""
    made: dict[Path, Job] = {}
    compose = _Composer(sweep)
    for point in at:
        words = " ".join(point)
        try:
            with _one_line():
                composed = compose(point)
                config = validate(composed)
            check_sources(config)
        except UsageError as error:
            raise UsageError(f"{error} (in the job {words})") from error
        join_group(config, sweep.name)
        job = Job(tuple(point), config, sweep.folder / run_label(composed), decided_as(composed, config))
        if job.folder in made:
            raise UsageError(
                f"sweep: the jobs {' '.join(made[job.folder].overrides)!r} and {words!r} are the same run, "
                f"{str(job.folder)!r}"
            )
        made[job.folder] = job
    return list(made.values())


def join_group(config: Config, name: str) -> None:
    """The runs of a sweep stand together in Weights & Biases, unless the config groups them itself."""
    if isinstance(config.tracker, Wandb) and config.tracker.group is None:
        config.tracker.group = name


class _Composer:
    """Composes jobs as Hydra does. Options of groups are composed once, since that takes Hydra a tenth of a second;
    values are then set in a copy."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep, self._groups = sweep, set(groups())
        self._parser = OverridesParser.create(config_loader=sweep.loader)
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, point: list[str]) -> DictConfig:
        chosen = tuple(own for own in point if own.partition("=")[0].lstrip("+~").partition("@")[0] in self._groups)
        if chosen not in self._composed:
            whole = self._sweep.loader.load_sweep_config(self._sweep.master, list(chosen))
            with open_dict(whole):
                del whole["hydra"]
            self._composed[chosen] = whole
        config = deepcopy(self._composed[chosen])
        values = self._parser.parse_overrides([own for own in point if own not in chosen])
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        return config


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(one_line(error)) from error
