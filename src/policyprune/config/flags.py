"""Flags of the verbs. They may stand anywhere; what is wrong with them is one line."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any, NoReturn

from policyprune.errors import UsageError

SWITCHES = ("run", "multirun", "resolve", "shell_completion", "hydra_help")
VALUES = ("cfg", "info", "package")
ALONE = ("run", "multirun", "cfg", "info", "shell_completion", "hydra_help")
COMPLETION = {"install", "uninstall", "query"}
SHOWN = ("job", "hydra", "all")
PARTS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


class Flags(ArgumentParser):
    """The flags of a verb; `read` gives their values, and as `words` what is no flag."""

    def __init__(self, verb: str) -> None:
        super().__init__(prog=verb, add_help=False, allow_abbrev=False)
        self.add_argument("words", nargs="*")
        self._names: list[str] = []

    def flag(self, *names: str, **settings: Any) -> None:
        """Declare one, as `add_argument` takes it."""
        self._names.append(names[0])
        self.add_argument(*names, **settings)

    def read(self, arguments: Sequence[str]) -> Namespace:
        """The values; UsageError for a flag that the verb does not have."""
        values, unknown = self.parse_known_intermixed_args(list(arguments))
        if unknown:
            flag, flags = unknown[0].partition("=")[0], ", ".join(self._names)
            raise UsageError(
                f"{flag}: no flag of policyprune {self.prog}, {f'it has {flags}' if flags else 'it has none'}"
            )
        for word in values.words:
            if word.startswith("-"):
                raise UsageError(f"{self.prog}: {word!r} is neither a flag nor key=value")
        return values

    def error(self, message: str) -> NoReturn:
        """Raise where argparse would print its usage and exit."""
        raise UsageError(f"{self.prog}: {message}")


def read_hydra(verb: str, arguments: Sequence[str]) -> Namespace:
    """The values of Hydra's flags that make sense for a run; UsageError for those that do not go together."""
    flags = Flags(verb)
    flags.flag("--multirun", "-m", action="store_true")
    flags.flag("--run", "-r", action="store_true")
    flags.flag("--cfg", "-c", choices=SHOWN)
    flags.flag("--package", "-p")
    flags.flag("--resolve", action="store_true")
    flags.flag("--info", "-i", nargs="?", const="all", choices=PARTS)
    flags.flag("--shell-completion", "-sc", action="store_true")
    flags.flag("--hydra-help", action="store_true")
    values = flags.read(arguments)
    if values.shell_completion and not {word.partition("=")[0] for word in values.words} & COMPLETION:
        raise UsageError("--shell-completion: needs a subcommand, install=bash, uninstall=bash or query=bash")
    together = [_flag(name) for name in ALONE if getattr(values, name)]
    if len(together) > 1:
        raise UsageError(f"{', '.join(together)}: give one of them")
    for name in ("package", "resolve"):
        if getattr(values, name) and values.cfg is None:
            raise UsageError(f"{_flag(name)}: goes with --cfg, as in --cfg job {_flag(name)}")
    return values


def before_overrides(values: Namespace) -> list[str]:
    """The same command line as Hydra reads it: the flags first."""
    flags = [_flag(name) for name in SWITCHES if getattr(values, name)]
    flags += [f"{_flag(name)}={getattr(values, name)}" for name in VALUES if getattr(values, name)]
    return [*flags, *values.words]


def only_shows(values: Namespace) -> bool:
    """Whether the command line asks for information and begins no run."""
    return bool(values.hydra_help or values.cfg or values.info or values.shell_completion)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
