"""A sweep: do what is not finished, go on after what fails, and tell what came of each run from its record."""

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tabulate import tabulate

from policyprune.config.launcher import check_launcher, launch
from policyprune.config.options import sweeps
from policyprune.config.schema import Config
from policyprune.config.sweep import Job, Sweep, jobs, opened, points
from policyprune.runs.folder import noting_failure
from policyprune.runs.status import Status, status_of

KILLED = "ended without a word: it was killed, or another process is still at it"


def listing() -> str:
    """The sweeps, with a line each."""
    return tabulate(list(sweeps().items()), tablefmt="plain")


def run(name: str, overrides: list[str], dry_run: bool = False) -> int:
    """Run the sweep, or list its jobs; 1 when a run did not finish. UsageError before anything is written."""
    check_launcher(overrides)
    with opened(name, overrides) as sweep:
        wanted = jobs(sweep, points(sweep))
        before = _look(wanted)
        if dry_run:
            print(_table(wanted, before))
            print(f"\n{len(wanted)} jobs in {sweep.folder}: {_counted(own.state for own in before)}")
            return 0
        due = [job for job, was in zip(wanted, before, strict=True) if was.state != "finished" or job.config.force]
        try:
            _do(sweep, due)
        finally:
            told = _told(wanted, due)
            print(f"\n{told}")
    after = _look(wanted)
    reported = _report(sweep)
    return 0 if reported and all(own.state == "finished" for own in after) else 1


def perform(config: Config, folder: Path) -> None:
    """One run of the sweep. Whatever ends it is in its record afterwards."""
    with noting_failure(config, folder):
        from policyprune.commands import run as pipeline  # imports torch

        pipeline.run(config, folder)


def _do(sweep: Sweep, due: list[Job]) -> None:
    if not due:
        return
    try:
        launch(sweep, due, perform)
    except Exception as error:  # of the launcher: a process that died takes its pool with it
        print(f"policyprune: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)


def _look(wanted: list[Job]) -> list[Status]:
    return [status_of(job.config, job.folder, "hydra.sweep.dir") for job in wanted]


def _told(wanted: list[Job], due: list[Job]) -> str:
    states = [Status("skipped") if job not in due else own for job, own in zip(wanted, _look(wanted), strict=True)]
    lines = [_table(wanted, states), "", f"{len(wanted)} jobs: {_counted(own.state for own in states)}"]
    for job, own in zip(wanted, states, strict=True):
        if own.state not in ("finished", "skipped"):
            lines.append(f"{own.state}: {job.folder}: {own.reason or KILLED}")
    return "\n".join(lines)


def _table(wanted: list[Job], states: list[Status]) -> str:
    """A line per job: its state, its point on the axes that have more than one, its folder."""
    common = set.intersection(*(set(job.overrides) for job in wanted)) if len(wanted) > 1 else set()
    rows = [
        [own.state, *(word for word in job.overrides if word not in common), job.folder.name]
        for job, own in zip(wanted, states, strict=True)
    ]
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def _counted(states: Iterable[str]) -> str:
    return ", ".join(f"{count} {state}" for state, count in Counter(states).items())


def _report(sweep: Sweep) -> bool:
    """The table of what there is; False when it could not be made."""
    if not sweep.folder.is_dir():
        return True
    from policyprune.commands.report import report_folder

    try:
        paths = report_folder(sweep.folder, sweep.name)
    except Exception as error:
        print(f"policyprune: no report: {' '.join(str(error).split())}", file=sys.stderr)
        return False
    print(f"\n{paths[0].read_text(encoding='utf-8')}")
    print("\n".join(str(path) for path in paths))
    return True
