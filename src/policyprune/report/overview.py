"""What became of the runs, and of the published values."""

from collections import Counter
from collections.abc import Sequence

from policyprune.report.measures import Line
from policyprune.report.metrics import signed, title, written
from policyprune.report.quality import Subject
from policyprune.report.reference import Published
from policyprune.report.runs import UNFINISHED, Run
from policyprune.report.table import Cell, Row, Table


def counts(runs: Sequence[Run]) -> str:
    """`24 runs: 22 finished, 1 failed, 1 running`."""
    ended = Counter(run.status for run in runs)
    told = ", ".join(f"{ended[state]} {state}" for state in ("finished", *UNFINISHED) if ended[state])
    return f"{len(runs)} run{'s' if len(runs) != 1 else ''}: {told}"


def unfinished_table(runs: Sequence[tuple[Run, list[Line]]], subjects: Sequence[Subject]) -> Table | None:
    """Runs that gave no numbers, and keep rates of a method that were not run at all."""
    rows = []
    for run, lines in runs:
        if run.status in UNFINISHED:
            names = (lines[-1].method, run.model, run.task) if lines else (run.folder.name, "", "")
            rate = "" if run.keep is None else f"{run.keep:g}"
            rows.append(
                Row(names, (Cell(rate), Cell(str(run.seed) if lines else ""), Cell(state=run.status), Cell(run.error)))
            )
    for subject in subjects:
        for method in dict.fromkeys(line.method for line, _ in subject.states):
            own = {keep for line, keep in subject.states if line.method == method}
            for keep in subject.keeps:
                if keep not in own:
                    names = (method, subject.model, subject.task)
                    rows.append(Row(names, (Cell(f"{keep:g}"), Cell(), Cell(state="missing"), Cell())))
    if not rows:
        return None
    groups = tuple(("", (name,)) for name in ("keep", "seed", "state", "reason"))
    caption = "Runs that gave no numbers. Missing: other methods were run at this keep rate."
    return Table(
        "runs without results", ("method", "model", "task"), groups, tuple(rows), caption, words=("state", "reason")
    )


def published_table(published: Sequence[Published], subjects: Sequence[Subject]) -> Table | None:
    """Every published value that is known, the measured one where there is one, and where it was published."""
    rows = []
    for own in published:
        if own.value is None:
            continue
        mean, differing = _measured(own, subjects)
        protocol = ", ".join(f"{key} {value}" for key, value in own.protocol.items())
        shown = Cell(written(own.metric, mean)) if mean is not None else Cell(state="not run")
        difference = signed(own.metric, mean - own.value) if mean is not None else ""
        keep = "" if own.method == "dense" else f"{own.keep:g}"
        names = (own.model, own.task, f"{own.method} + {own.tuning}" if own.tuning else own.method, keep)
        cells = (
            Cell(f"{title(own.metric)}, {protocol}"),
            Cell(written(own.metric, own.value)),
            shown,
            Cell(difference, remark=differing),
            Cell(own.source),
        )
        rows.append(Row(names, cells))
    if not rows:
        return None
    groups = tuple(("", (name,)) for name in ("protocol", "published", "measured", "difference", "source"))
    caption = "Known published values. A remark names what of the protocol was different here."
    return Table(
        "published values",
        ("model", "task", "method", "keep"),
        groups,
        tuple(rows),
        caption,
        words=("protocol", "source"),
    )


def _measured(own: Published, subjects: Sequence[Subject]) -> tuple[float | None, str]:
    """The measured mean, and in which parts of the protocol the measurement differs from the published one."""
    for subject in subjects:
        for cell in subject.cells.itertuples():
            keep = None if cell.keep != cell.keep else cell.keep
            key = (cell.model, cell.task, cell.method, cell.tuning, keep, cell.metric)
            if own.is_of(*key, cell.place) and cell.mean == cell.mean:
                conditions = {**cell.conditions[0], **dict(cell.place)}
                differing = [
                    f"{name} {conditions[name]} here"
                    for name, value in own.protocol.items()
                    if name in conditions and str(conditions[name]) != value
                ]
                return float(cell.mean), ", ".join(differing)
    return None, ""
