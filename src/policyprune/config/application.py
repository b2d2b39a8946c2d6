"""Verbs as Hydra applications: checked before anything is written, started by Hydra, refused in one line."""

import contextlib
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from policyprune.config.composition import Point, compose, compose_all, key_of, of_hydra, register
from policyprune.config.flags import Flags, before_overrides, only_shows, read_hydra
from policyprune.config.messages import one_line
from policyprune.config.output_folders import OutputFolder, output_folder, restore
from policyprune.config.registry import conf_dir
from policyprune.config.validate import check_sources, validate
from policyprune.errors import RunError, UsageError, describe
from policyprune.processes import processes, rank


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A verb that makes runs, each in a folder of its own.

    `config` names the file in conf/. `action(config, folder)` does one run, `worker(config)` what processes of another
    rank than 0 do. `words` stand before the overrides on the command line, `added` are overrides that no user gave.
    """

    name: str
    config: str
    action: Callable[[Any, Path], object]
    worker: Callable[[Any], int] | None = None
    words: tuple[str, ...] = ()
    added: tuple[str, ...] = ()


def launch(verb: Verb, arguments: list[str]) -> int:
    """Run Hydra on the command line; what the user got wrong is raised as UsageError, and leaves no files."""
    register()
    line = read_hydra(verb.name, [*verb.added, *arguments])
    if rank() > 0:
        return _work(verb, line)
    sys.argv[1:] = before_overrides(line)
    jobs = _Jobs(verb)
    with _errors_reach_us():
        with _usage_errors(lambda: jobs.begun):
            if only_shows(line):
                _check_shown(verb, line)
            else:
                jobs.folders = _check_runs(verb, line)
            hydra.main(config_path=str(conf_dir()), config_name=verb.config, version_base="1.3")(jobs.perform)()
        jobs.end()
    return 0


def checked(verb: str, config_name: str, overrides: list[str]) -> Any:
    """The checked config of a verb that makes no run: it has no folder, no flags and no settings of Hydra."""
    register()
    Flags(verb).read(overrides)
    for override in overrides:
        if of_hydra(override):
            raise UsageError(f"{override}: policyprune {verb} makes no run folder and has no settings of Hydra")
    with _usage_errors():
        return compose(config_name, overrides).config


def _work(verb: Verb, line: Namespace) -> int:
    """Help rank 0, which runs Hydra, writes the files and tells the user what is wrong."""
    if verb.worker is None or only_shows(line) or _several(line):
        return 0
    try:
        with _usage_errors():
            config = compose(verb.config, line.words, verb.added).config
    except UsageError:
        return 2
    return verb.worker(config)


def _several(line: Namespace) -> bool:
    """Whether a command line asks for several runs."""
    modes = [word.partition("=")[2] for word in line.words if key_of(word) == "hydra.mode"]
    return bool(line.multirun or (modes and modes[-1].strip("'\"").upper() == "MULTIRUN"))


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
def _usage_errors(begun: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Whatever goes wrong before a run begins is wrong with the command line."""
    try:
        yield
    except (UsageError, RunError):
        raise
    except Exception as error:
        if begun():
            raise
        raise UsageError(one_line(error)) from error


def _check_shown(verb: Verb, line: Namespace) -> None:
    """UsageError for a package that is not in the config, which Hydra would report in many lines."""
    if line.package is None:
        return
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = hydra.compose(verb.config, line.words, return_hydra_config=line.cfg != "job")
    if OmegaConf.select(config, line.package) is None:
        raise UsageError(f"--package: {line.package!r} is not in the config")


def _check_runs(verb: Verb, line: Namespace) -> dict[Path, OutputFolder]:
    """Check every run before the first one begins, and look at their folders, by path."""
    several = _several(line)
    points = (
        compose_all(verb.config, line.words, verb.added) if several else [compose(verb.config, line.words, verb.added)]
    )
    folders: list[OutputFolder] = []
    for point in points:
        try:
            check_sources(point.config)
            folders += [output_folder(key, name) for key, name in _folders(point, several).items() if name is not None]
        except UsageError as error:
            raise (_of_job(error, point.overrides) if several else error) from error
    return {folder.path: folder for folder in folders}


def _folders(point: Point, several: bool) -> dict[str, str | None]:
    run, sweep, job = point.folders.values()
    if not several:
        return {"hydra.run.dir": run}
    return {"hydra.sweep.dir": sweep, "hydra.sweep.subdir": job if not job or sweep is None else str(Path(sweep, job))}


def _of_job(error: UsageError, overrides: Sequence[str]) -> UsageError:
    return UsageError(f"{error} (in the job {' '.join(overrides)})")


class _Jobs:
    """Performs Hydra's jobs, and keeps the errors that end them, which Hydra would print over many lines."""

    def __init__(self, verb: Verb) -> None:
        self.folders: dict[Path, OutputFolder] = {}
        self.begun = False
        self._process = os.getpid()
        self._verb = verb
        self._ended: list[Exception] = []

    def perform(self, composed: DictConfig) -> None:
        """One job; it may be refused, then nothing is left of it."""
        node = HydraConfig.get()
        folder, several = Path(node.runtime.output_dir), node.mode == RunMode.MULTIRUN
        overrides = [override for override in node.overrides.task if override not in self._verb.added]
        sys.argv[1:] = [*self._verb.words, *overrides]  # the record tells this very job, also of a multirun
        os.chdir(node.runtime.cwd)  # with hydra.job.chdir relative paths would mean something else than on the screen
        try:
            if processes() > 1 and several:
                raise UsageError(f"WORLD_SIZE: {processes()} processes share one run, several runs need one process")
            config = validate(composed)
            check_sources(config)
            self.begun = True
            self._verb.action(config, folder)
        except Exception as error:
            if isinstance(error, UsageError):
                error = _of_job(error, overrides) if several else error
                if folder in self.folders:
                    restore(self.folders[folder])
            if os.getpid() != self._process:  # where a launcher chose another one, only what is raised gets back
                raise error if isinstance(error, UsageError) else RunError(describe(error)) from error
            self._ended.append(error)

    def end(self) -> None:
        """Raise what ended a job, the worst last; the others are printed."""
        if not self._ended:
            return
        for sweep in {path.parent for path in self.folders} & set(self.folders):
            restore(self.folders[sweep])
        *first, last = sorted(self._ended, key=lambda error: not isinstance(error, UsageError))
        for error in first:
            print(f"policyprune: {describe(error)}", file=sys.stderr)
        raise last
