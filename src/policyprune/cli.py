"""The command `policyprune [verb] ...`. torch is imported only when a run begins."""

import os
import sys
from collections.abc import Callable
from typing import Any

from policyprune.errors import UsageError, on_one_line, told


def run(arguments: list[str]) -> int:
    """Search, shrink, save and measure."""
    from policyprune.config import application

    def pipeline() -> application.Action:
        from policyprune.commands import run as pipeline  # imports torch

        return pipeline.run

    def beside() -> Callable[[Any], int]:
        from policyprune.search import worker as following  # imports torch

        return following.follow

    return application.launch(arguments, "config", pipeline, beside=beside)


def finetune(arguments: list[str]) -> int:
    """Make the fine-tuned checkpoint that retraining-free pruning starts from."""
    from policyprune.config import application

    def finetuning() -> application.Action:
        from policyprune.commands import finetune as finetuning  # imports torch

        return finetuning.run

    return application.launch(arguments, "finetune", finetuning, ("finetune",))


def sweep(arguments: list[str]) -> int:
    """Run the jobs of a sweep that are not finished, and make its table."""
    from policyprune.commands import sweep as sweeping

    flags = [argument for argument in arguments if argument.startswith("-")]
    unknown = [flag for flag in flags if flag != "--dry-run"]
    if unknown:
        raise UsageError(f"sweep: {unknown[0]} is no flag of it, it has --dry-run")
    words = [argument for argument in arguments if argument not in flags]
    if not words:
        print(sweeping.listing())
        return 0
    return sweeping.run(words[0], words[1:], bool(flags))


def doctor(arguments: list[str]) -> int:
    """Show what was found in a model and check its pruning on random weights, or check every family."""
    flags = [argument for argument in arguments if argument.startswith("-")]
    if flags and arguments != ["--families"]:
        raise UsageError("doctor: give model=option and key=value, or --families alone")
    if flags:
        from policyprune.commands import doctor as families  # imports torch

        return families.examine_families()
    from policyprune.config.application import validated
    from policyprune.storage.sources import check_source

    config = validated(arguments)
    check_source(config.model.source, weights=False)
    from policyprune.commands import doctor as model  # imports torch

    return model.examine(config)


def evaluate(arguments: list[str]) -> int:
    """Measure a run's checkpoint, or anyone's, again."""
    from policyprune.config import application, targets
    from policyprune.models.modelling_file import brings_only_ours

    def evaluating() -> application.Action:
        from policyprune.commands import evaluate as evaluating  # imports torch

        return evaluating.run

    source, given = targets.split("evaluate", arguments, "a run folder, a checkpoint or a hub id")
    added = targets.evaluating(targets.find(source, brings_only_ours), given)
    return application.launch(given, "evaluate", evaluating, ("evaluate", source), added)


def export(arguments: list[str]) -> int:
    """Write a run or a checkpoint in another format."""
    from policyprune.config import application, targets
    from policyprune.models.modelling_file import brings_only_ours

    def exporting() -> Callable[[Any], object]:
        from policyprune.commands import export as exporting  # imports torch

        return exporting.export

    source, given = targets.split("export", arguments, "a run folder, a checkpoint or a hub id")
    added = targets.exporting(targets.find(source, brings_only_ours))
    return application.perform([*added, *given], "export", exporting)


def apply(arguments: list[str]) -> int:
    """Lay a plan on its dense model."""
    from policyprune.config import application, targets

    def applying() -> Callable[[Any], object]:
        from policyprune.commands import export as exporting  # imports torch

        return exporting.apply

    plan, given = targets.split("apply", arguments, "a plan.json")
    return application.perform([*targets.applying(plan, given), *given], "apply", applying)


def report(arguments: list[str]) -> int:
    """Make tables and plots of the runs below some folders."""
    from policyprune.commands import report as reporting

    return reporting.report(arguments)


VERBS: dict[str, Callable[[list[str]], int]] = {
    "run": run,
    "sweep": sweep,
    "finetune": finetune,
    "evaluate": evaluate,
    "export": export,
    "apply": apply,
    "doctor": doctor,
    "report": report,
}


def main() -> None:
    """Entry point: the first word may name a verb, the default verb is `run`."""
    arguments = sys.argv[1:]
    if "-sc" in arguments or "--shell-completion" in arguments:
        from policyprune.config.completion import complete

        if complete(arguments, list(VERBS)):
            sys.exit(0)
    verb: Callable[[list[str]], int] = run
    if arguments and arguments[0] in VERBS:
        verb = VERBS[arguments.pop(0)]
    elif arguments and arguments[0].isalpha():
        _refuse(f"{arguments[0]!r} is not a verb or key=value, the verbs are {', '.join(VERBS)}")
    if "--version" in arguments:
        from importlib.metadata import version

        print(f"policyprune {version('policyprune')}")
        sys.exit(0)
    if "--help" in arguments or "-h" in arguments:
        from policyprune.config.help import help_text

        print(help_text(), end="")
        sys.exit(0)
    try:
        status = verb(arguments)
    except UsageError as error:
        _refuse(str(error))
    except KeyboardInterrupt as error:
        status = getattr(error, "exit_code", 130)
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        if not getattr(error, "logged", False):  # the run told it in its log
            print(f"policyprune: {told(error)}", file=sys.stderr)
        status = 1
    sys.stdout.flush()
    sys.exit(status)


def _refuse(message: str) -> None:
    print(f"policyprune: {on_one_line(message)}", file=sys.stderr)
    sys.exit(2)
