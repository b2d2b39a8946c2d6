"""The jobs of a sweep: the points of its axes, all checked before the first begins, and Hydra's launchers for them."""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from policyprune.config.composition import key_of, of_hydra, parsed, product, quoted, register
from policyprune.config.messages import one_line
from policyprune.config.output_folders import output_folder
from policyprune.config.registry import conf_dir, groups, sweeps, sweeps_dir
from policyprune.config.schema import Config, Wandb
from policyprune.config.validate import check_sources, decided_as, run_label, validate
from policyprune.errors import UsageError

LAUNCHERS = {  # the package of each, which are extras
    "joblib": "hydra_joblib_launcher",
    "workers": "hydra_joblib_launcher",
    "slurm": "hydra_submitit_launcher",
    "submitit_local": "hydra_submitit_launcher",
    "submitit_slurm": "hydra_submitit_launcher",
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a sweep. `overrides` are its point on the axes, as they may stand on the command line.

    `decided` are overrides for what `auto` came to, so that no process of the sweep decides anew.
    """

    overrides: tuple[str, ...]
    config: Config
    folder: Path
    decided: tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """A composed sweep: `master` is the config that Hydra's launchers start from, with Hydra's own node.

    `overrides` are those of the command line that go to the jobs.
    """

    name: str
    overrides: list[str]
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
    _check_hydras(overrides)
    register()
    settings = [
        f"hydra.searchpath=[{quoted(conf_dir().as_uri())}]",
        "hydra.mode=MULTIRUN",
        f"hydra.sweep.dir=outputs/sweeps/{name}",
        *filter(of_hydra, overrides),
    ]
    with hydra.initialize_config_dir(str(sweeps_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        with _one_line():
            master = loader.load_configuration(name, settings, RunMode.MULTIRUN)
        with open_dict(master):
            master.hydra.job.name = "policyprune"
        output_folder("hydra.sweep.dir", str(master.hydra.sweep.dir))
        yield Sweep(name, [override for override in overrides if not of_hydra(override)], master, loader)


def _check_hydras(overrides: list[str]) -> None:
    """UsageError for settings of Hydra that a sweep makes itself, and for a launcher whose package is missing."""
    for override in overrides:
        key, value = key_of(override), override.partition("=")[2]
        if key in ("hydra.sweep.subdir", "hydra.mode"):
            raise UsageError(f"{key}: a sweep sets it itself, hydra.sweep.dir is its folder")
        if key == "hydra/launcher" and value in LAUNCHERS and not _installed(LAUNCHERS[value]):
            raise UsageError(f"hydra/launcher: {value!r} needs an extra, pip install 'policyprune[cluster]'")


def _installed(plugin: str) -> bool:
    try:
        return importlib.util.find_spec(f"hydra_plugins.{plugin}") is not None
    except ModuleNotFoundError:
        return False


def points(sweep: Sweep) -> list[list[str]]:
    """The product of the axes in the file and on the command line, which replaces an axis of the file.

    Each point is a list of overrides. UsageError for an axis that still needs its values.
    """
    axes = sweep.master.hydra.sweeper.get("params") or OmegaConf.create({})
    with _one_line():
        stated = parsed(sweep.overrides)
        replaced = {override.get_key_element() for override in stated}
        fixed = [str(key) for key in axes if key not in replaced]
        for key in fixed:
            if OmegaConf.is_missing(axes, key):
                raise UsageError(f"{key}: no value given, set it on the command line ({key}=...)")
        return product([*parsed([f"{key}={axes[key]}" for key in fixed]), *stated])


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
        folder = sweep.folder / run_label(composed)
        if folder in made:
            raise UsageError(
                f"sweep: the jobs {' '.join(made[folder].overrides)!r} and {words!r} are the same run, {str(folder)!r}"
            )
        made[folder] = Job(overrides=tuple(point), config=config, folder=folder, decided=decided_as(composed, config))
    return list(made.values())


def join_group(config: Config, name: str) -> None:
    """The runs of a sweep stand together in Weights & Biases, unless the config groups them itself."""
    if isinstance(config.tracker, Wandb) and config.tracker.group is None:
        config.tracker.group = name


class _Composer:
    """Composes jobs as Hydra does. Options of groups are composed once, since that takes Hydra a tenth of a second;
    values of keys that are there are then set in a copy."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep, self._groups = sweep, set(groups())
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, point: list[str]) -> DictConfig:
        chosen = tuple(override for override in point if self._changes_keys(override))
        if chosen not in self._composed:
            whole = self._sweep.loader.load_sweep_config(self._sweep.master, list(chosen))
            with open_dict(whole):
                del whole["hydra"]
            self._composed[chosen] = whole
        config = deepcopy(self._composed[chosen])
        for override in parsed([override for override in point if override not in chosen]):
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        return config

    def _changes_keys(self, override: str) -> bool:
        return override.startswith(("+", "~")) or key_of(override).partition("@")[0] in self._groups


def launch(sweep: Sweep, jobs: list[Job], action: Callable[[Config, Path], object]) -> None:
    """Do `action(config, folder)` for each job; one that fails does not stop the others.

    `action` may be called in another process, so it is a function of a module, and what came of it is in the records.
    """
    launcher = Plugins.instance().instantiate_launcher(
        HydraContext(config_loader=sweep.loader, callbacks=Callback()),  # type: ignore[arg-type]  # one that does nothing
        partial(_perform, sweep.name, action),
        sweep.master,
    )
    points = [[*job.overrides, *job.decided, f"hydra.sweep.subdir={quoted(job.folder.name)}"] for job in jobs]
    launcher.launch(points, initial_job_idx=0)


def _perform(name: str, action: Callable[[Config, Path], object], composed: DictConfig) -> None:
    """One job, in whatever process the launcher chose."""
    hydra_config = HydraConfig.get()
    # the record tells this very job, whatever program the launcher started
    sys.argv[:] = ["policyprune", "sweep", name, *hydra_config.overrides.task]
    os.chdir(hydra_config.runtime.cwd)  # with hydra.job.chdir relative paths would mean something else
    config = validate(composed)
    join_group(config, name)
    action(config, Path(hydra_config.runtime.output_dir))


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(one_line(error)) from error
