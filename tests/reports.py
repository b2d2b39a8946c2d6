"""Reports on records written by hand, and the tables, rows and cells in them."""

from pathlib import Path

from policyprune.report.contents import Report, make_report
from policyprune.report.lines import Line
from policyprune.report.reference import Published
from policyprune.report.runs import find_runs
from policyprune.report.table import Cell, Row, Table

SOURCE = "Somebody, somewhere"


def report_on(folder: Path, published: list[Published] | None = None) -> Report:
    """The report on all runs below a folder."""
    return make_report("a title", find_runs([folder]), published or [])


def table_of(report: Report, title: str) -> Table:
    """The one table whose title begins so."""
    found = [table for section in report.sections for table in section.tables if table.title.startswith(title)]
    assert len(found) == 1, [table.title for section in report.sections for table in section.tables]
    return found[0]


def row_of(table: Table, *names: str) -> Row:
    """The one row whose names begin so."""
    found = [row for row in table.rows if row.names[: len(names)] == names]
    assert len(found) == 1, [row.names for row in table.rows]
    return found[0]


def cell_of(table: Table, column: str, *names: str) -> Cell:
    """The cell in a column, by the column's full title."""
    return row_of(table, *names).cells[table.columns.index(column)]


def bold_rows(folder: Path, title: str = "perplexity") -> set[str]:
    """The methods with a bold cell."""
    return {row.names[0] for row in table_of(report_on(folder), title).rows if any(cell.best for cell in row.cells)}


def published(value: float | None, method: str = "dense", **protocol: str) -> Published:
    """A published perplexity of the tiny model."""
    stated = {"length": "128", **protocol}
    return Published(
        line=Line(model="tiny", task="text", method=method),
        keep=0.8,
        metric="perplexity",
        protocol=stated,
        value=value,
        source=SOURCE,
    )
