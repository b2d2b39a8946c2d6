"""The Hydra applications behind the verbs."""

import contextlib
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from policyprune.config.composition import Point, composed, points, sweeps
from policyprune.config.flags import before_overrides, only_shows, parsed
from policyprune.config.messages import one_line
from policyprune.config.options import conf_dir
from policyprune.config.origins import check_sources
from policyprune.config.places import Place, check_output, leave_as_before, place
from policyprune.config.schema import Config
from policyprune.config.store import register
from policyprune.config.validate import validate
from policyprune.errors import UsageError, told
from policyprune.processes import processes, rank

Action = Callable[[Any, Path], object]


def launch(
    arguments: list[str],
    config_name: str,
    action: Callable[[], Action],
    words: Sequence[str] = (),
    added: Sequence[str] = (),
    beside: Callable[[], Callable[[Any], int]] | None = None,
) -> int:
    """Run Hydra on the command line; what the user got wrong is raised as UsageError, and leaves no files.

    `action()` is called when a run begins, and gives what is done with its config and folder. `words` is what stood
    before the overrides on the command line, `added` are overrides that did not stand there. `beside()` gives what
    processes of another rank than 0 do; without it they have nothing to do.
    """
    register()
    given = parsed([*added, *arguments])
    if rank() > 0:
        return _aside(given, config_name, beside)
    sys.argv[1:] = before_overrides(given)
    jobs = _Jobs(action, words, added)
    with _errors_reach_us():
        with _complaining(lambda: jobs.begun):
            if only_shows(given):
                _check_shown(given, config_name)
            else:
                jobs.places = _look(given, config_name, added)
            hydra.main(config_path=str(conf_dir()), config_name=config_name, version_base="1.3")(jobs.perform)()
        jobs.end()
    return 0


def validated(overrides: list[str]) -> Config:
    """The checked config of a verb that is no run: it has no folder, and takes no flags of Hydra."""
    register()
    config = _of_no_run("doctor", "config", overrides)
    assert isinstance(config, Config)
    return config


def perform(overrides: list[str], config_name: str, action: Callable[[], Callable[[Any], object]]) -> int:
    """What needs a config but is no run: compose, check, do it. `action()` gives what is done with the config."""
    register()
    if rank() > 0:
        return 0
    config = _of_no_run(config_name, config_name, overrides)
    check_output(config.output, getattr(config, "format", "hf") in ("hf", "onnx"))
    action()(config)
    return 0


def _of_no_run(verb: str, config_name: str, overrides: list[str]) -> Any:
    for own in overrides:
        if own.startswith("-"):
            raise UsageError(f"{own}: no flag of policyprune {verb}")
        if own.lstrip("+~").startswith(("hydra.", "hydra/")):
            raise UsageError(f"{own}: policyprune {verb} makes no run folder and has no settings of Hydra")
    with _complaining():
        return composed(config_name, overrides).config


def _aside(given: Namespace, config_name: str, beside: Callable[[], Callable[[Any], int]] | None) -> int:
    """Stand beside rank 0, which runs Hydra, writes the files and tells the user what is wrong."""
    if beside is None or only_shows(given) or sweeps(given):
        return 0
    try:
        with _complaining():
            config = composed(config_name, given.overrides).config
    except UsageError:
        return 2
    return beside()(config)


@contextlib.contextmanager
def _errors_reach_us() -> Iterator[None]:
    """Hydra and logging do not print errors of their own, over many lines, unless HYDRA_FULL_ERROR=1 asks for them."""
    before, shown = os.environ.get("HYDRA_FULL_ERROR"), logging.raiseExceptions
    logging.raiseExceptions = before == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        os.environ["HYDRA_FULL_ERROR"] = before or "0"
        logging.raiseExceptions = shown


@contextlib.contextmanager
def _complaining(begun: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Whatever goes wrong before a run begins is wrong with the command line."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if begun():
            raise
        raise UsageError(one_line(error)) from error


def _check_shown(given: Namespace, config_name: str) -> None:
    """UsageError for a package that the config has not, where Hydra would end in its own way."""
    if given.package is None:
        return
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = hydra.compose(config_name, given.overrides, return_hydra_config=given.cfg != "job")
    if OmegaConf.select(config, given.package) is None:
        raise UsageError(f"--package: {given.package!r} is not in the config")


def _look(given: Namespace, config_name: str, added: Sequence[str]) -> dict[Path, Place]:
    """Check every run before the first one begins, and remember what was there before."""
    multirun = sweeps(given)
    places: list[Place] = []
    for point in points(config_name, given, added):
        try:
            check_sources(point.config)
            places += [place(key, named) for key, named in _folders(point, multirun).items() if named is not None]
        except UsageError as error:
            raise (UsageError(f"{error} (in the job {' '.join(point.overrides)})") if multirun else error) from error
    return {own.folder: own for own in places}


def _folders(point: Point, multirun: bool) -> dict[str, str | None]:
    if not multirun:
        return {"hydra.run.dir": point.run}
    job = point.job if not point.job or point.sweep is None else str(Path(point.sweep, point.job))
    return {"hydra.sweep.dir": point.sweep, "hydra.sweep.subdir": job}


class _Jobs:
    """Performs Hydra's jobs, and keeps to itself what ends them, since Hydra would add lines of its own."""

    def __init__(self, action: Callable[[], Action], words: Sequence[str], added: Sequence[str]) -> None:
        self.places: dict[Path, Place] = {}
        self.begun = False
        self._action, self._words, self._added = action, words, added
        self._ended: list[Exception] = []

    def perform(self, composed: DictConfig) -> None:
        """One job; it may be refused, then nothing is left of it."""
        own = HydraConfig.get()
        folder = Path(own.runtime.output_dir)
        given = [override for override in own.overrides.task if override not in self._added]
        sys.argv[1:] = [*self._words, *given]  # the record tells this very job, also of a sweep
        os.chdir(own.runtime.cwd)  # with hydra.job.chdir relative paths would mean something else than on the screen
        try:
            if processes() > 1 and own.mode == RunMode.MULTIRUN:
                raise UsageError(f"WORLD_SIZE: {processes()} processes share one run, a sweep needs one process")
            config = validate(composed)
            check_sources(config)
            self.begun = True
            self._action()(config, folder)
        except Exception as error:
            several = own.mode == RunMode.MULTIRUN and isinstance(error, UsageError)
            self._ended.append(UsageError(f"{error} (in the job {' '.join(given)})") if several else error)
            if isinstance(error, UsageError) and folder in self.places:
                leave_as_before(self.places[folder])

    def end(self) -> None:
        """Raise what ended a job, the worst last; the others are told."""
        if not self._ended:
            return
        for sweep in {path.parent for path in self.places} & set(self.places):
            leave_as_before(self.places[sweep])
        *others, last = sorted(self._ended, key=lambda error: not isinstance(error, UsageError))
        for other in others:
            print(f"policyprune: {told(other)}", file=sys.stderr)
        raise last
