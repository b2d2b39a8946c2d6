"""A report as Markdown."""

import html
from collections.abc import Iterator

from tabulate import tabulate

from policyprune.report.contents import Report
from policyprune.report.table import Cell, Table, one_line

MARKS = "\\|*_[]`~$#"


def markdown(report: Report, figures: str) -> str:
    """The whole report; `figures` is the folder of the plots, relative to it."""
    return "\n".join(_lines(report, figures)) + "\n"


def _lines(report: Report, figures: str) -> Iterator[str]:
    yield from (f"# {_plain(report.title)}", "", f"{report.summary}.")
    for section in report.sections:
        yield from ("", f"## {_plain(section.title)}")
        for table in section.tables:
            yield from ("", _plain(table.caption), "", _table(table))
            yield from (f"\n<sup>{_plain(note)}</sup>" for note in table.notes)
        for plot in section.plots:
            yield from ("", f"![{_plain(plot.caption)}]({figures}/{plot.name}.svg)", "", f"*{_plain(plot.caption)}*")


def _table(table: Table) -> str:
    body = [[*_names(row.names, row.marks), *(_cell(cell) for cell in row.cells)] for row in table.rows]
    headers = [_plain(name) for name in (*table.stub, *table.columns)]
    align = ["left"] * len(table.stub) + ["left" if name in table.words else "right" for name in table.columns]
    return tabulate(body, headers, tablefmt="github", disable_numparse=True, colalign=align if body else None)


def _names(names: tuple[str, ...], marks: str) -> list[str]:
    first, *others = (_plain(name) for name in names)
    return [f"{first} <sup>{marks}</sup>" if marks else first, *others]


def _cell(cell: Cell) -> str:
    if cell.state:
        shown = f"*{_plain(cell.state)}*"
    else:
        shown = _plain(f"{cell.value} ± {cell.spread}" if cell.spread else cell.value)
        shown = f"**{shown}**" if cell.best else shown
    return f"{shown} ({_plain(cell.remark)})" if cell.remark else shown


def _plain(text: str) -> str:
    """Text that Markdown takes as it is, on one line: HTML as entities, marks behind a backslash."""
    return "".join(f"\\{letter}" if letter in MARKS else html.escape(letter, quote=False) for letter in one_line(text))
