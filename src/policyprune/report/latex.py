"""The tables of a report as LaTeX, for `\\usepackage{booktabs}`."""

from collections.abc import Iterator

from policyprune.report.contents import Report
from policyprune.report.table import Cell, Row, Table, one_line

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "±": r"$\pm$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{letter: f"{{{letter}}}" for letter in "[]"},  # behind a line's end they would be its optional argument
}


def latex(report: Report) -> str:
    """A table environment for each table."""
    blocks = [f"% {one_line(report.title)}: {report.summary}"]
    blocks += ["\n".join(_table(table)) for section in report.sections for table in section.tables]
    return "\n\n".join(blocks) + "\n"


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(SPECIAL.get(letter, letter) for letter in one_line(text))


def _table(table: Table) -> Iterator[str]:
    columns = "l" * len(table.stub) + "".join("l" if name in table.words else "r" for name in table.columns)
    yield from (r"\begin{table}", r"\centering", r"\small", f"\\caption{{{escaped(table.caption)}}}")
    yield from (f"\\begin{{tabular}}{{{columns}}}", r"\toprule")
    yield from _header(table)
    yield r"\midrule"
    for number, row in enumerate(table.rows):
        yield _row(row)
        if row.rule and number + 1 < len(table.rows):
            yield r"\midrule"
    yield from (r"\bottomrule", r"\end{tabular}")
    if table.notes:
        yield rf"\par\smallskip\footnotesize {'; '.join(escaped(note) for note in table.notes)}"
    yield r"\end{table}"


def _header(table: Table) -> Iterator[str]:
    stub, place = len(table.stub), len(table.stub) + 1
    if any(group for group, _ in table.groups):
        titles, rules = [""] * stub, []
        for group, own in table.groups:
            titles.append(f"\\multicolumn{{{len(own)}}}{{c}}{{{escaped(group)}}}")
            rules += [f"\\cmidrule(lr){{{place}-{place + len(own) - 1}}}"] if group else []
            place += len(own)
        yield " & ".join(titles) + r" \\"
        yield " ".join(rules)
    yield (
        " & ".join(escaped(name) for name in (*table.stub, *(own for _, owns in table.groups for own in owns))) + r" \\"
    )


def _row(row: Row) -> str:
    first, *others = (escaped(name) for name in row.names)
    marked = f"{first}\\textsuperscript{{{row.marks}}}" if row.marks else first
    return " & ".join([marked, *others, *(_cell(cell) for cell in row.cells)]) + r" \\"


def _cell(cell: Cell) -> str:
    if cell.state:
        shown = f"\\emph{{{escaped(cell.state)}}}"
    else:
        shown = f"\\textbf{{{escaped(cell.value)}}}" if cell.best else escaped(cell.value)
        shown += rf" {{\scriptsize $\pm$ {escaped(cell.spread)}}}" if cell.spread else ""
    return f"{shown} {{\\scriptsize ({escaped(cell.remark)})}}" if cell.remark else shown
