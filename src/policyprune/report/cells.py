"""All cells of a report as CSV, a line each, for whoever counts further."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from policyprune.report.contents import Report
from policyprune.report.measures import CELL
from policyprune.report.quality import Subject, state_of
from policyprune.report.reference import Published

KEY = [*CELL[:-1], "protocol"]
COLUMNS = [*KEY, "state", "mean", "deviation", "n", "stderr", "spread", "unit", "published", "difference", "source"]


def cells_csv(report: Report, published: Sequence[Published]) -> str:
    """Full precision; `n` seeds, `deviation` of a sample over them, `stderr` the mean of the metric's own.

    `spread` is that of a time's rounds.
    A row and keep rate without any value has one line, whose state says why.
    """
    rows = [dict(zip(KEY, key, strict=True)) | own for key, own in _measured(report.cells, published)]
    for subject in report.subjects:
        rows += _without(subject)
    frame = pd.DataFrame(rows, columns=COLUMNS).astype({"n": "Int64"})
    return str(frame.to_csv(index=False, lineterminator="\n"))


def _measured(cells: pd.DataFrame, published: Sequence[Published]) -> Iterator[tuple[Any, dict[str, Any]]]:
    for cell in cells.itertuples():
        keep = None if cell.keep != cell.keep else cell.keep
        key = (cell.model, cell.task, cell.method, cell.tuning, keep, cell.metric)
        known = next((own for own in published if own.is_of(*key, cell.place) and own.value is not None), None)
        values = {name: getattr(cell, name) for name in ("mean", "deviation", "n", "stderr", "spread", "unit")}
        if known is not None and known.value is not None:
            values |= {"published": known.value, "difference": cell.mean - known.value, "source": known.source}
        state = "measured" if cell.mean == cell.mean else "not finite"
        yield (*key, ";".join(f"{name}={own}" for name, own in cell.place)), {"state": state, **values}


def _without(subject: Subject) -> Iterator[dict[str, Any]]:
    for line in dict.fromkeys(line for line, _ in subject.states):
        for keep in subject.keeps:
            state = state_of(subject, line, keep)
            if state:
                names = {"model": line.model, "task": line.task, "method": line.method, "tuning": line.tuning}
                yield {**names, "keep": keep, "state": state}
