"""The flags of the verbs that Hydra runs. They may stand anywhere; what is wrong with them is told in one line."""

from argparse import Namespace
from collections.abc import Sequence
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from policyprune.errors import UsageError

ELSEWHERE = ("config_path", "config_name", "config_dir", "experimental_rerun")  # other files than conf/, a pickle
ALONE = ("run", "multirun", "cfg", "info", "shell_completion", "hydra_help")


def parsed(arguments: Sequence[str]) -> Namespace:
    """Hydra's namespace of flags and `overrides`; UsageError for a flag that is unknown, or is of no use here."""
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    given = parser.parse_intermixed_args(list(arguments))
    for name in ELSEWHERE:
        if getattr(given, name) is not None:
            raise UsageError(f"{_flag(name)}: no flag of policyprune, the options are those that --help lists")
    together = [_flag(name) for name in ALONE if getattr(given, name)]
    if len(together) > 1:
        raise UsageError(f"{', '.join(together)}: give one of them")
    for name in ("package", "resolve"):
        if getattr(given, name) and given.cfg is None:
            raise UsageError(f"{_flag(name)}: goes with --cfg, as in --cfg job {_flag(name)}")
    for own in given.overrides:
        if own.startswith("-"):
            raise UsageError(f"{own!r} is neither a flag nor key=value")
    return given


def before_overrides(given: Namespace) -> list[str]:
    """The same command line as Hydra reads it: the flags first."""
    switches = [_flag(name) for name in ("run", "multirun", "shell_completion", "hydra_help", "resolve")]
    kept = [flag for flag in switches if getattr(given, flag.removeprefix("--").replace("-", "_"))]
    values = [f"{_flag(name)}={getattr(given, name)}" for name in ("cfg", "info", "package") if getattr(given, name)]
    return [*kept, *values, *given.overrides]


def only_shows(given: Namespace) -> bool:
    """Whether the command line asks for information and begins no run."""
    return bool(given.hydra_help or given.cfg or given.info or given.shell_completion)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _refuse(message: str) -> NoReturn:
    raise UsageError(f"{message} (policyprune --help lists the flags)")
