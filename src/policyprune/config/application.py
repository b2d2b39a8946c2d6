"""The Hydra applications behind the verbs."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from policyprune.config.complaints import one_line
from policyprune.config.options import conf_dir, groups, options
from policyprune.config.schema import Config
from policyprune.config.settle import settle
from policyprune.config.store import register
from policyprune.errors import UsageError
from policyprune.models.sources import check_sources
from policyprune.ranks import processes, rank

REFUSED: list[UsageError] = []  # what was found wrong inside Hydra's jobs, which would add lines of its own


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
    arguments = [*added, *arguments]
    if rank() > 0:
        return _aside(arguments, config_name, beside)
    sys.argv[1:] = arguments
    REFUSED.clear()
    try:
        with _complaining():
            _check_before_anything_is_written(arguments, config_name, added)
            job = _job(action, words, added)
            hydra.main(config_path=str(conf_dir()), config_name=config_name, version_base="1.3")(job)()
    except _ReportedError:
        return 1
    for refused in REFUSED[:-1]:
        print(f"policyprune: {refused}", file=sys.stderr)
    if REFUSED:
        raise REFUSED[-1]
    return 0


def _aside(arguments: list[str], config_name: str, beside: Callable[[], Callable[[Any], int]] | None) -> int:
    """Stand beside rank 0, which runs Hydra, writes the files and tells the user what is wrong."""
    parsed = get_args_parser().parse_args(arguments)
    if beside is None or parsed.hydra_help or parsed.cfg or parsed.info or parsed.shell_completion or parsed.multirun:
        return 0
    try:
        config = _composed(parsed.config_name or config_name, parsed.overrides)
    except (UsageError, HydraException, OmegaConfBaseException):
        return 2
    return beside()(config)


def settled(overrides: list[str]) -> Config:
    """The checked config of a verb that is no run: it has no folder, and takes no flags of Hydra."""
    register()
    try:
        config = _composed("config", overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(one_line(error)) from error
    assert isinstance(config, Config)
    return config


def perform(overrides: list[str], config_name: str, action: Callable[[], Callable[[Any], object]]) -> int:
    """What needs a config but is no run: compose, check, do it. `action()` gives what is done with the config."""
    register()
    flags = [own for own in overrides if own.startswith("-")]
    if flags:
        raise UsageError(f"{flags[0]}: no flag of policyprune {config_name}")
    if rank() > 0:
        return 0
    try:
        with _complaining():
            action()(_composed(config_name, overrides))
    except _ReportedError:
        return 1
    return 0


class _ReportedError(Exception):
    """Something went wrong, and the user has been told."""


@contextlib.contextmanager
def _complaining() -> Iterator[None]:
    """Errors of the user as UsageError, others as one line, unless HYDRA_FULL_ERROR=1 asks for all of it."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    show_everything = before == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra prints errors itself, over many lines, and exits with 1
    try:
        yield
    except UsageError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        if show_everything:
            raise
        raise UsageError(one_line(error)) from error
    except Exception as error:
        if show_everything:
            raise
        if not getattr(error, "logged", False):
            print(f"policyprune: {type(error).__name__}: {error}", file=sys.stderr)
        raise _ReportedError from error
    finally:
        os.environ["HYDRA_FULL_ERROR"] = before or "0"


def _check_before_anything_is_written(arguments: list[str], config_name: str, added: Sequence[str]) -> None:
    parsed = get_args_parser().parse_args(arguments)
    if parsed.hydra_help or parsed.cfg or parsed.info or parsed.shell_completion or parsed.multirun:
        return  # the jobs of a multirun are checked one by one, as they begin
    if any(override.startswith("hydra.mode=") for override in parsed.overrides):
        return
    check_sources(_composed(parsed.config_name or config_name, parsed.overrides, added))


def _composed(config_name: str, overrides: list[str], added: Sequence[str] = ()) -> Any:
    for override in overrides:
        group, _, option = override.partition("=")
        several = group == "export" and option.startswith("[") and option.endswith("]")
        for name in option[1:-1].split(",") if several else [option]:
            known = name.strip() in (*options(group), "null") if group in groups() else True
            if not known and override not in added and (several or "," not in option):
                raise UsageError(f"{group}: {name.strip()!r} is not one of {', '.join(options(group))}")
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return settle(hydra.compose(config_name, overrides))


def _job(action: Callable[[], Action], words: Sequence[str], added: Sequence[str]) -> Callable[[DictConfig], None]:
    def job(composed: DictConfig) -> None:
        folder = Path(HydraConfig.get().runtime.output_dir)
        given = [own for own in HydraConfig.get().overrides.task if own not in added]
        sys.argv[1:] = [*words, *given]  # the record tells this very job, also of a sweep
        try:
            if processes() > 1 and HydraConfig.get().mode == RunMode.MULTIRUN:
                raise UsageError(f"WORLD_SIZE: {processes()} processes share one run, a sweep needs one process")
            config = settle(composed)
            check_sources(config)
            action()(config, folder)
        except UsageError as error:
            REFUSED.append(error)
            _tidy(folder)

    return job


def _tidy(folder: Path) -> None:
    """Remove what Hydra made for a run that never began."""
    if not any((folder / name).exists() for name in ("record.json", ".lock")):
        with contextlib.suppress(OSError):
            (folder / "run.log").unlink(missing_ok=True)
            folder.rmdir()
            folder.parent.rmdir()
