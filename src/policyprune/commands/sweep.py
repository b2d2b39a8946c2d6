"""A sweep: run what is not finished, go on after what fails, and print what came of each run from its record."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from policyprune.config.registry import sweeps
from policyprune.config.schema import Config
from policyprune.config.sweep import Job, Sweep, jobs, launch, opened, points
from policyprune.runs.folder import noting_failure
from policyprune.runs.record import Status, status_of

KILLED = "no error is known: it was killed, or another process is still at it"


def listing() -> str:
    """The sweeps, with a line each."""
    return tabulate(list(sweeps().items()), tablefmt="plain")


def run(name: str, overrides: list[str], dry_run: bool) -> int:
    """Run the sweep, or list its jobs; 1 when a run did not finish. UsageError before anything is written."""
    with opened(name, overrides) as sweep:
        planned = jobs(sweep, points(sweep))
        before = _statuses(planned)
        if dry_run:
            print(f"{_table(planned, before)}\n\n{len(planned)} jobs in {sweep.folder}: {_counts(before)}")
            return 0
        due = [
            job for job, status in zip(planned, before, strict=True) if status.state != "finished" or job.config.force
        ]
        try:
            _launch(sweep, due)
        finally:
            print(f"\n{_summary(planned, due)}")
    after = _statuses(planned)
    reported = _report(sweep)
    return 0 if reported and all(status.state == "finished" for status in after) else 1


def perform(config: Config, folder: Path) -> None:
    """One run of the sweep. Whatever ends it is in its record afterwards."""
    with noting_failure(config, folder):
        from policyprune.commands.run import run  # imports torch

        run(config, folder)


def _launch(sweep: Sweep, due: list[Job]) -> None:
    if not due:
        return
    try:
        launch(sweep, due, perform)
    except Exception as error:  # of the launcher: a process that died takes its pool with it
        print(f"policyprune: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)


def _statuses(planned: list[Job]) -> list[Status]:
    return [status_of(job.config, job.folder, "hydra.sweep.dir") for job in planned]


def _summary(planned: list[Job], due: list[Job]) -> str:
    statuses = [
        status if job in due else Status("skipped") for job, status in zip(planned, _statuses(planned), strict=True)
    ]
    lines = [_table(planned, statuses), "", f"{len(planned)} jobs: {_counts(statuses)}"]
    for job, status in zip(planned, statuses, strict=True):
        if status.state not in ("finished", "skipped"):
            lines.append(f"{status.state}: {job.folder}: {status.reason or KILLED}")
    return "\n".join(lines)


def _table(planned: list[Job], statuses: list[Status]) -> str:
    """A line per job: its state, its point on the axes that have more than one, its folder."""
    common = set.intersection(*(set(job.overrides) for job in planned)) if len(planned) > 1 else set()
    rows = [
        [status.state, *(override for override in job.overrides if override not in common), job.folder.name]
        for job, status in zip(planned, statuses, strict=True)
    ]
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def _counts(statuses: Sequence[Status]) -> str:
    states = Counter(status.state for status in statuses)
    return ", ".join(f"{count} {state}" for state, count in states.items())


def _report(sweep: Sweep) -> bool:
    """Print the table of what there is; False when it could not be made."""
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
