"""The command `policyprune [verb] ...`: finds the verb, and ends with one line and an exit code where it fails."""

import os
import sys

from policyprune.commands.help import USAGE, complete, help_text
from policyprune.errors import UsageError, describe, on_one_line
from policyprune.processes import rank


def main() -> None:
    """Entry point: the first word may name a verb, the default verb is `run`."""
    arguments = sys.argv[1:]
    if ("-sc" in arguments or "--shell-completion" in arguments) and complete(arguments):
        sys.exit(0)
    verb = "run"
    if arguments and arguments[0] in USAGE:
        verb = arguments.pop(0)
    elif arguments and arguments[0].isalpha():
        sys.exit(_refused(f"{arguments[0]!r} is not a verb or key=value, the verbs are {', '.join(USAGE)}"))
    if "--version" in arguments:
        from importlib.metadata import version

        print(f"policyprune {version('policyprune')}")
        sys.exit(0)
    if "--help" in arguments or "-h" in arguments:
        print(help_text(), end="")
        sys.exit(0)
    status = perform(verb, arguments)
    sys.stdout.flush()
    sys.exit(status)


def perform(verb: str, arguments: list[str]) -> int:
    """Do it, and return the exit code: 2 for a wrong command line, 1 for what failed, 128 + its number for a signal."""
    if verb not in ("run", "recover") and rank() > 0:
        return 0  # processes beside the first one help in a search and in a training
    from policyprune.commands.verbs import VERBS

    try:
        return VERBS[verb](arguments)
    except UsageError as error:
        return _refused(str(error))
    except KeyboardInterrupt as error:
        return int(getattr(error, "exit_code", 130))
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        if not getattr(error, "logged", False):  # the run has it in its log
            print(f"policyprune: {describe(error)}", file=sys.stderr)
        return 1


def _refused(message: str) -> int:
    print(f"policyprune: {on_one_line(message)}", file=sys.stderr)
    return 2
