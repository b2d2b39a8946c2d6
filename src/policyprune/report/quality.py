"""Tables of how good the models are: methods against keep rates, or against zero-shot tasks."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from policyprune.report.differences import differences
from policyprune.report.leading import RULE, leading
from policyprune.report.measures import DENSE, Line
from policyprune.report.metrics import ARROWS, better, place_title, signed, title, written
from policyprune.report.reference import Published
from policyprune.report.runs import UNFINISHED
from policyprune.report.table import Cell, Footnotes, Row, Table

Column = tuple[str, tuple[Any, ...], float | None]  # metric, place, keep rate


@dataclass(frozen=True)
class Subject:
    """One model on one task: its cells, its rows in order, and how the runs of each row and keep rate ended."""

    model: str
    task: str
    cells: pd.DataFrame
    lines: list[Line]
    states: dict[tuple[Line, float | None], list[str]]
    published: list[Published]
    warnings: dict[Line, list[str]] = field(default_factory=dict)  # what the records say against the rows' numbers

    @property
    def keeps(self) -> list[float | None]:
        """The keep rates of all runs, the largest first; None alone where nothing was pruned."""
        return [*sorted({keep for _, keep in self.states if keep is not None}, reverse=True)] or [None]

    @property
    def name(self) -> str:
        """Model and task in words."""
        return f"{self.model}, {self.task}"


def quality_tables(subject: Subject) -> Iterator[Table]:
    """A table per metric with the keep rates side by side, and one of all zero-shot tasks per keep rate."""
    cells = subject.cells[subject.cells["metric"].map(better) != 0]
    zero_shot = cells["place"].map(lambda place: "task" in dict(place)).astype(bool)
    for metric, own in cells[~zero_shot].groupby("metric", sort=False):
        places = list(dict.fromkeys(own["place"]))
        groups = [(f"{place_title(place) or title(metric)} {ARROWS[better(metric)]}", place) for place in places]
        columns = {name: [(metric, place, keep) for keep in subject.keeps] for name, place in groups}
        heading = f"{title(metric)} of {subject.name}"
        yield _table(heading, subject, own, columns, lambda column: "" if column[2] is None else f"keep {column[2]:g}")
    for keep in subject.keeps:
        own = _preferred(cells[zero_shot & ((cells["keep"] == keep) | cells["keep"].isna())])
        if keep is None or set(own["method"]) - {DENSE}:
            columns = {
                f"{title(metric)} {ARROWS[better(metric)]}": [
                    (metric, place, keep) for place in dict.fromkeys(of["place"])
                ]
                for metric, of in own.groupby("metric", sort=False)
            }
            heading = f"zero-shot accuracy of {subject.model}" + ("" if keep is None else f" at keep {keep:g}")
            yield _table(heading, subject, own, columns, lambda column: place_title(column[1]))


def _preferred(cells: pd.DataFrame) -> pd.DataFrame:
    """Of each task the accuracy that is normalised by length, where it has one."""
    normalised = set(cells[cells["metric"] == "acc_norm"]["place"])
    return cells[(cells["metric"] != "acc") | ~cells["place"].isin(normalised)]


def _table(
    heading: str,
    subject: Subject,
    cells: pd.DataFrame,
    columns: Mapping[str, Sequence[Column]],
    name: Callable[[Column], str],
) -> Table:
    values = {(_line(own), own.metric, own.place, _keep(own)): own for own in cells.itertuples()}
    order = [column for group in columns.values() for column in group]
    wanted = {line for line, _ in subject.states} | {line for line, *_ in values}
    lines = [line for line in subject.lines if line in wanted]
    best = {column: _best(column, values) for column in order}
    footnotes = Footnotes()
    told = _told(cells)
    for line in lines:
        told.setdefault(line.title, []).extend(subject.warnings.get(line, []))
    rows = []
    for line in lines:
        seeds = max((own.n for key, own in values.items() if key[0] == line), default=0)
        shown = tuple(_cell(subject, line, column, values, seeds, line in best[column]) for column in order)
        marks = footnotes.mark(told.get(line.title, []))
        names = (line.method, line.tuning, str(seeds) if seeds and line.method != DENSE else "")
        rows.append(Row(names, shown, marks, rule=line.method == DENSE))
    several = any(own.n > 1 for own in values.values())
    spread = ": mean ± standard deviation over seeds" if several else ""
    groups = tuple((group, tuple(name(column) for column in own)) for group, own in columns.items())
    caption = f"{heading[0].upper()}{heading[1:]}{spread}. {RULE}"
    return Table(heading, ("method", "tuning", "seeds"), groups, tuple(rows), caption, footnotes.told)


def _cell(subject: Subject, line: Line, column: Column, values: Mapping[Any, Any], seeds: int, best: bool) -> Cell:
    metric, place, keep = column
    found = values.get((line, metric, place, keep)) or values.get((line, metric, place, None))
    published = _published(subject, line, column)
    if found is None:
        remark = f"published {written(metric, published)}" if published is not None else ""
        return Cell(state=state_of(subject, line, keep) or "not measured", remark=remark)
    if found.mean != found.mean:
        return Cell(state="not finite")
    remarks = []
    if line.method != DENSE:
        lost = [state for state in subject.states.get((line, keep), []) if state != "finished"]
        remarks += [f"n = {found.n}"] if found.n != seeds else []
        remarks += [f"{lost.count(state)} {state}" for state in dict.fromkeys(lost)]
    if published is not None:
        remarks.append(f"published {written(metric, published)}, {signed(metric, found.mean - published)}")
    spread = written(metric, found.deviation) if found.deviation == found.deviation else ""
    shown = written(metric, found.mean)
    return Cell(shown, spread, ", ".join(remarks), best=best)


def state_of(subject: Subject, line: Line, keep: float | None) -> str:
    """Why a row has no values at a keep rate; empty where a run finished, or where none was to fill the row."""
    states = subject.states.get((line, keep))
    if states is None:
        return "missing" if any(own == line for own, _ in subject.states) else ""
    return "" if "finished" in states else next(own for own in UNFINISHED if own in states)


def _best(column: Column, values: Mapping[Any, Any]) -> set[Hashable]:
    """The rows that are ahead in a column; the dense model takes no part."""
    metric, place, keep = column
    own = {line: cell for (line, *rest), cell in values.items() if rest == [metric, place, keep]}
    return leading(metric, {line: cell for line, cell in own.items() if line.method != DENSE})


def _published(subject: Subject, line: Line, column: Column) -> float | None:
    metric, place, keep = column
    if line.method == DENSE and keep != subject.keeps[0]:
        return None  # said once
    for own in subject.published:
        if own.is_of(line.model, line.task, line.method, line.tuning, keep, metric, place):
            return own.value
    return None


def _told(cells: pd.DataFrame) -> dict[str, list[str]]:
    """What sets rows apart in some column; columns are measured in different ways by design."""
    told: dict[str, list[str]] = {}
    for _, own in cells.groupby(["metric", "place"], sort=False):
        for name, remarks in differences(_conditions(own)).items():
            told[name] = list(dict.fromkeys([*told.get(name, []), *remarks]))
    return told


def _conditions(cells: pd.DataFrame) -> dict[str, dict[float | None, list[dict[str, Any]]]]:
    found: dict[str, dict[float | None, list[dict[str, Any]]]] = {}
    for own in cells.itertuples():
        found.setdefault(_line(own).title, {}).setdefault(_keep(own), []).extend(own.conditions)
    return found


def _line(cell: Any) -> Line:
    return Line(cell.model, cell.task, cell.method, cell.tuning)


def _keep(cell: Any) -> float | None:
    """None where nothing is pruned: such a row says the same at every keep rate."""
    return None if cell.keep != cell.keep else float(cell.keep)
