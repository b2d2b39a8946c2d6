"""What the verbs take on the command line. torch is imported only where the action of a verb begins."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from policyprune.config import application, targets
from policyprune.config.flags import Flags
from policyprune.config.output_folders import check_output
from policyprune.errors import UsageError
from policyprune.models.modelling_file import brings_only_ours
from policyprune.storage.sources import check_source

MODEL = "a run folder, a checkpoint or a hub id"


def run(arguments: list[str]) -> int:
    """Search, shrink, save and measure."""

    def action(config: Any, folder: Path) -> None:
        from policyprune.commands.run import run

        run(config, folder)

    def worker(config: Any) -> int:
        from policyprune.search.worker import work

        return work(config)

    return application.launch(application.Verb(name="run", config="config", action=action, worker=worker), arguments)


def sweep(arguments: list[str]) -> int:
    """Run the jobs of a sweep that are not finished, and make its table; list the sweeps where none is named."""
    from policyprune.commands.sweep import listing, run

    flags = Flags("sweep")
    flags.flag("--dry-run", action="store_true")
    given = flags.read(arguments)
    if given.words:
        return run(given.words[0], given.words[1:], given.dry_run)
    print(listing())
    return 0


def finetune(arguments: list[str]) -> int:
    """Make the fine-tuned checkpoint that retraining-free pruning starts from."""

    def action(config: Any, folder: Path) -> None:
        from policyprune.commands.finetune import run

        run(config, folder)

    verb = application.Verb(name="finetune", config="finetune", action=action, words=("finetune",))
    return application.launch(verb, arguments)


def recover(arguments: list[str]) -> int:
    """Train a run's checkpoint, or anyone's, back."""

    def action(config: Any, folder: Path) -> None:
        from policyprune.commands.recover import run

        run(config, folder)

    def worker(config: Any) -> int:
        from policyprune.commands.recover import work

        return work(config)

    source, overrides = targets.split("recover", arguments, MODEL)
    added = targets.recovering(targets.find(source, brings_only_ours), overrides)
    words = ("recover", source)
    return application.launch(
        application.Verb(
            name="recover", config="recover", action=action, worker=worker, words=words, added=tuple(added)
        ),
        overrides,
    )


def evaluate(arguments: list[str]) -> int:
    """Measure a run's checkpoint, or anyone's, again."""

    def action(config: Any, folder: Path) -> None:
        from policyprune.commands.evaluate import run

        run(config, folder)

    source, overrides = targets.split("evaluate", arguments, MODEL)
    added = targets.evaluating(targets.find(source, brings_only_ours), overrides)
    words = ("evaluate", source)
    verb = application.Verb(name="evaluate", config="evaluate", action=action, words=words, added=tuple(added))
    return application.launch(verb, overrides)


def export(arguments: list[str]) -> int:
    """Write a run or a checkpoint in another format."""
    source, overrides = targets.split("export", arguments, MODEL)
    added = targets.exporting(targets.find(source, brings_only_ours))
    config = application.checked("export", "export", [*added, *overrides])
    check_output(config.output, folder=config.format in ("hf", "onnx"))
    from policyprune.commands.export import export

    export(config)
    return 0


def apply(arguments: list[str]) -> int:
    """Prune a dense model as a plan says."""
    plan, overrides = targets.split("apply", arguments, "a plan.json")
    config = application.checked("apply", "apply", [*targets.applying(plan, overrides), *overrides])
    check_output(config.output, folder=True)
    from policyprune.commands.export import apply

    apply(config)
    return 0


def report(arguments: list[str]) -> int:
    """Make tables and plots of the runs below some folders."""
    from policyprune.commands.report import report

    flags = Flags("report")
    flags.flag("--table")
    flags.flag("--output")
    flags.flag("--wandb", action="store_true")
    given = flags.read(arguments)
    report([Path(word) for word in given.words], given.table, given.output, given.wandb)
    return 0


def doctor(arguments: list[str]) -> int:
    """Show what can be removed from a model and check its pruning on random weights, or check every family."""
    flags = Flags("doctor")
    flags.flag("--families", action="store_true")
    given = flags.read(arguments)
    if given.families and given.words:
        raise UsageError("doctor: give model=option and key=value, or --families alone")
    if given.families:
        from policyprune.commands.doctor import examine_families

        return examine_families()
    config = application.checked("doctor", "config", given.words)
    check_source(config.model.source, weights=False)
    from policyprune.commands.doctor import examine

    return examine(config)


VERBS: dict[str, Callable[[list[str]], int]] = {
    "run": run,
    "sweep": sweep,
    "finetune": finetune,
    "recover": recover,
    "evaluate": evaluate,
    "export": export,
    "apply": apply,
    "doctor": doctor,
    "report": report,
}
