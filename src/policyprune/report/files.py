"""All files of a report, each written whole or not at all. What is shown comes from others: each form escapes it."""

import base64
import html
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from tabulate import tabulate

from policyprune.errors import UsageError
from policyprune.report.contents import Report, make_report
from policyprune.report.plots import Plot, styled
from policyprune.report.reference import read_reference
from policyprune.report.results import TaskResults
from policyprune.report.runs import FINISHED, find_runs
from policyprune.report.table import Cell, Row, Table, one_line, without_empty_columns
from policyprune.storage.files import write_whole
from policyprune.tracking import track_report

FIGURES = "figures"
MARKDOWN_MARKS = "\\|*_[]`~$#"
LATEX_ESCAPES = {
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
CSV_KEY = ["model", "task", "method", "tuning", "recovery", "keep", "metric", "protocol"]
CSV_COLUMNS = [
    *CSV_KEY,
    *("state", "mean", "deviation", "n", "stderr", "spread", "unit", "published", "difference", "source"),
]
PAGE = "page.html.j2"
BEFORE_PLOTS = 2  # tables of a section that stand above its plots


def write_report(folders: Sequence[Path], table: str, output: Path, wandb: bool = False) -> list[Path]:
    """Write report.md, .tex, .csv, .html and figures/*.svg, *.png into `output`; their paths, the Markdown first.

    The files also go to W&B where the runs went there, or where `wandb` wishes it. UsageError where no record is found.
    """
    runs = find_runs(folders)
    if not runs:
        raise UsageError(f"report: no record.json below {', '.join(repr(str(folder)) for folder in folders)}")
    report = make_report(table, runs, read_reference(table))
    plots = [plot for section in report.sections for plot in section.plots]
    drawings = {plot.name: _drawn(plot, "svg") for plot in plots}
    texts = {
        "report.md": markdown(report, FIGURES),
        "report.tex": latex(report),
        "report.csv": csv(report),
        "report.html": page(report, drawings),
    }
    (output / FIGURES if plots else output).mkdir(parents=True, exist_ok=True)
    whole = {output / name: text.encode() for name, text in texts.items()}
    for plot in plots:
        whole[output / FIGURES / f"{plot.name}.svg"] = drawings[plot.name]
        whole[output / FIGURES / f"{plot.name}.png"] = _drawn(plot, "png")
    for path, content in whole.items():
        write_whole(path, content)
    track_report([run.config for run in runs], wandb, table, output, list(whole))
    return list(whole)


def _drawn(plot: Plot, form: str) -> bytes:
    buffer = io.BytesIO()
    with styled():
        plot.figure.savefig(buffer, format=form, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()


def markdown(report: Report, figures: str) -> str:
    """The whole report; `figures` is the folder of the plots, relative to it."""
    return "\n".join(_markdown_lines(report, figures)) + "\n"


def latex(report: Report) -> str:
    """A table environment for each table, for `\\usepackage{booktabs}`."""
    blocks = ["\n".join(f"% {one_line(text)}" for text in (f"{report.title}: {report.summary}", *report.how_to_read))]
    blocks += ["\n".join(_latex_table(table)) for section in report.sections for table in section.tables]
    return "\n\n".join(blocks) + "\n"


def csv(report: Report) -> str:
    """Every mean in full precision, over `n` seeds, with their deviation as a sample.

    `stderr` is the mean of the metric's own standard error, `spread` that of a time's rounds. A row and keep rate
    without any value has one line, whose state says why.
    """
    rows = [*_csv_means(report), *(row for results in report.results for row in _csv_without_values(results))]
    frame = pd.DataFrame(rows, columns=CSV_COLUMNS).astype({"n": "Int64"})
    return str(frame.to_csv(index=False, lineterminator="\n"))


def page(report: Report, drawings: Mapping[str, bytes]) -> str:
    """One HTML page that needs nothing beside it; `drawings` has the SVG of each plot by name, and goes in as data."""
    images = {name: f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}" for name, svg in drawings.items()}
    source = files("policyprune.report").joinpath(PAGE).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["compact"] = without_empty_columns
    protocols = {results.name: text for results in report.results if (text := _protocol(results))}
    template = environment.from_string(source)
    return template.render(report=report, images=images, protocols=protocols, shown=BEFORE_PLOTS)


def latex_escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(LATEX_ESCAPES.get(letter, letter) for letter in one_line(text))


def _markdown_lines(report: Report, figures: str) -> Iterator[str]:
    yield from (f"# {_plain(report.title)}", "", f"{report.summary}.", "")
    yield from (f"- {_plain(text)}" for text in report.how_to_read)
    for section in report.sections:
        yield from ("", f"## {_plain(section.title)}")
        for table in section.tables:
            yield from ("", _plain(table.caption), "", _markdown_table(without_empty_columns(table)))
            yield from (f"\n<sup>{_plain(note)}</sup>" for note in table.notes)
        for plot in section.plots:
            yield from ("", f"![{_plain(plot.caption)}]({figures}/{plot.name}.svg)", "", f"*{_plain(plot.caption)}*")


def _markdown_table(table: Table) -> str:
    body = [[*_markdown_names(row), *map(_markdown_cell, row.cells)] for row in table.rows]
    headers = [_plain(name) for name in (*table.stub, *table.columns)]
    align = ["left"] * len(table.stub) + ["left" if name in table.words else "right" for name in table.columns]
    return tabulate(body, headers, tablefmt="github", disable_numparse=True, colalign=align if body else None)


def _markdown_names(row: Row) -> list[str]:
    first, *others = (_plain(name) for name in row.names)
    return [f"{first} <sup>{row.marks}</sup>" if row.marks else first, *others]


def _markdown_cell(cell: Cell) -> str:
    if cell.state:
        shown = f"*{_plain(cell.state)}*"
    else:
        shown = _plain(f"{cell.value} ± {cell.spread}" if cell.spread else cell.value)
        shown = f"**{shown}**" if cell.best else shown
    return f"{shown} ({_plain(cell.remark)})" if cell.remark else shown


def _plain(text: str) -> str:
    """Text that Markdown takes as it is, on one line: HTML as entities, marks behind a backslash."""
    return "".join(
        f"\\{letter}" if letter in MARKDOWN_MARKS else html.escape(letter, quote=False) for letter in one_line(text)
    )


def _latex_table(full: Table) -> Iterator[str]:
    table = without_empty_columns(full)
    columns = "l" * len(table.stub) + "".join("l" if name in table.words else "r" for name in table.columns)
    yield from (r"\begin{table}", r"\centering", r"\small", f"\\caption{{{latex_escaped(table.caption)}}}")
    yield from (f"\\begin{{tabular}}{{{columns}}}", r"\toprule")
    if any(group for group, _ in table.groups):
        yield from _latex_groups(table)
    titles = (*table.stub, *(name for _, names in table.groups for name in names))
    yield from (" & ".join(map(latex_escaped, titles)) + r" \\", r"\midrule")
    for number, row in enumerate(table.rows, start=1):
        yield _latex_row(row)
        if row.rule and number < len(table.rows):
            yield r"\midrule"
    yield from (r"\bottomrule", r"\end{tabular}")
    if table.notes:
        yield rf"\par\smallskip\footnotesize {'; '.join(map(latex_escaped, table.notes))}"
    yield r"\end{table}"


def _latex_groups(table: Table) -> Iterator[str]:
    titles, rules, first = [""] * len(table.stub), [], len(table.stub) + 1
    for group, names in table.groups:
        titles.append(f"\\multicolumn{{{len(names)}}}{{c}}{{{latex_escaped(group)}}}")
        rules += [f"\\cmidrule(lr){{{first}-{first + len(names) - 1}}}"] if group else []
        first += len(names)
    yield from (" & ".join(titles) + r" \\", " ".join(rules))


def _latex_row(row: Row) -> str:
    first, *others = map(latex_escaped, row.names)
    marked = f"{first}\\textsuperscript{{{row.marks}}}" if row.marks else first
    return " & ".join([marked, *others, *map(_latex_cell, row.cells)]) + r" \\"


def _latex_cell(cell: Cell) -> str:
    if cell.state:
        shown = f"\\emph{{{latex_escaped(cell.state)}}}"
    else:
        shown = f"\\textbf{{{latex_escaped(cell.value)}}}" if cell.best else latex_escaped(cell.value)
        shown += rf" {{\scriptsize $\pm$ {latex_escaped(cell.spread)}}}" if cell.spread else ""
    return f"{shown} {{\\scriptsize ({latex_escaped(cell.remark)})}}" if cell.remark else shown


def _csv_means(report: Report) -> Iterator[dict[str, Any]]:
    for mean in report.means:
        row = {
            **vars(mean.line),
            "keep": mean.column.keep,
            "metric": mean.column.metric,
            "protocol": ";".join(f"{name}={value}" for name, value in mean.column.setting),
            "state": "not finite" if mean.value is None else "measured",
            "mean": mean.value,
            **{name: getattr(mean, name) for name in ("deviation", "n", "stderr", "spread", "unit")},
        }
        for cell in report.published:
            if cell.value is not None and cell.is_of(mean.line, mean.column):
                difference = None if mean.value is None else mean.value - cell.value
                row |= {"published": cell.value, "difference": difference, "source": cell.source}
                break
        yield row


def _csv_without_values(results: TaskResults) -> Iterator[dict[str, Any]]:
    for line in dict.fromkeys(line for line, _ in results.states):
        for keep in results.keeps:
            state = results.state(line, keep)
            if state:
                yield {**vars(line), "keep": keep, "state": state}


def _protocol(results: TaskResults) -> str:
    """Protocol and versions of the first finished run; the tables say where others differ."""
    run = next((run for run, _ in results.runs if run.status == FINISHED), None)
    if run is None:
        return ""
    return json.dumps(
        {key: run.content.get(key) for key in ("protocol", "versions", "hardware")}, indent=2, ensure_ascii=False
    )
