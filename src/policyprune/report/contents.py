"""What a report has in it: sections of tables and plots, and what became of the runs and of the published values."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from policyprune.report.lines import DENSE, Line, lines_of
from policyprune.report.means import Mean, means_of, signed, title, written
from policyprune.report.plots import Plot, layer_keep_rates, looks, search_curves, styled
from policyprune.report.quality_plots import latency_against_macs, quality_against_macs, zero_shot_bars
from policyprune.report.reference import Published
from policyprune.report.results import TaskResults, results_of
from policyprune.report.runs import FINISHED, UNFINISHED, Run
from policyprune.report.table import Cell, Row, Table
from policyprune.report.tables import cost_tables, quality_tables

LONGEST = 60  # letters of a name that go into a file's
HOW_TO_READ = (
    "keep 0.8: 80 % of the dense model is left, counted as the budget counts (units, parameters, FLOPs or latency).",
    "24.10 ± 0.20: mean and standard deviation over seeds. ↓: lower is better, ↑: higher is better.",
    "Bold: the best mean of a column, and those within one standard error of the difference from it. Nothing is bold "
    "where the best has one seed, or where that would be every row.",
    "A letter behind a name: a note below the table says how that row was measured differently from the others.",
)


@dataclass(frozen=True)
class Section:
    """A heading, tables and plots below it."""

    title: str
    tables: tuple[Table, ...]
    plots: tuple[Plot, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """All sections, the means behind them, and in a line what became of the runs."""

    title: str
    summary: str
    sections: tuple[Section, ...]
    means: tuple[Mean, ...]
    results: tuple[TaskResults, ...]
    runs: tuple[Run, ...]
    published: tuple[Published, ...]
    how_to_read: tuple[str, ...] = HOW_TO_READ


def make_report(heading: str, runs: Sequence[Run], published: Sequence[Published]) -> Report:
    """A section for each model and task, then the published values and the runs without results."""
    with_lines = list(zip(runs, lines_of(runs), strict=True))
    means = means_of(with_lines)
    results = tuple(results_of(with_lines, means, published))
    sections = [_section(each, suffix) for each, suffix in zip(results, _suffixes(results), strict=True)]
    for name, table in (
        ("Published values", published_table(published, means)),
        ("Runs without results", unfinished_table(with_lines, results)),
    ):
        sections += [Section(name, (table,))] if table is not None else []
    return Report(
        title=heading,
        summary=counts(runs),
        sections=tuple(sections),
        means=tuple(means),
        results=results,
        runs=tuple(runs),
        published=tuple(published),
    )


def counts(runs: Sequence[Run]) -> str:
    """`24 runs: 22 finished, 1 failed, 1 running`."""
    ended = Counter(run.status for run in runs)
    states = ", ".join(f"{ended[state]} {state}" for state in (FINISHED, *UNFINISHED) if ended[state])
    return f"{len(runs)} run{'s' if len(runs) != 1 else ''}: {states}"


def unfinished_table(runs: Sequence[tuple[Run, list[Line]]], results: Sequence[TaskResults]) -> Table | None:
    """Runs that gave no numbers, and keep rates of a method that were not run at all."""
    rows = []
    for run, lines in runs:
        if run.status in UNFINISHED:
            names = (lines[-1].method, run.model, run.task) if lines else (run.folder.name, "", "")
            rate = "" if run.keep is None else f"{run.keep:g}"
            seed = str(run.seed) if lines else ""
            rows.append(_row(names, Cell(rate), Cell(seed), Cell(state=run.status), Cell(run.error)))
    for each in results:
        for method in dict.fromkeys(line.method for line, _ in each.states):
            tried = {keep for line, keep in each.states if line.method == method}
            for keep in each.keeps:
                if keep not in tried:
                    names = (method, each.model, each.task)
                    rows.append(_row(names, Cell(f"{keep:g}"), Cell(), Cell(state="missing"), Cell()))
    if not rows:
        return None
    return Table(
        title="runs without results",
        stub=("method", "model", "task"),
        groups=tuple(("", (name,)) for name in ("keep", "seed", "state", "reason")),
        rows=tuple(rows),
        caption="Runs that gave no numbers. Missing: other methods were run at this keep rate.",
        words=("state", "reason"),
    )


def published_table(published: Sequence[Published], means: Sequence[Mean]) -> Table | None:
    """Every published value that is known, the measured one where there is one, and where it was published."""
    rows = []
    for cell in published:
        if cell.value is None:
            continue
        mean = next((mean for mean in means if cell.is_of(mean.line, mean.column) and mean.value is not None), None)
        line, metric = cell.line, cell.metric
        protocol = ", ".join(f"{key} {value}" for key, value in cell.protocol.items())
        measured, difference = Cell(state="not run"), Cell()
        if mean is not None and mean.value is not None:
            measured = Cell(written(metric, mean.value))
            difference = Cell(signed(metric, mean.value - cell.value), remark=_other_protocol(cell, mean))
        rows.append(
            _row(
                (line.model, line.task, line.title, "" if line.method == DENSE else f"{cell.keep:g}"),
                Cell(f"{title(metric)}, {protocol}"),
                Cell(written(metric, cell.value)),
                measured,
                difference,
                Cell(cell.source),
            )
        )
    if not rows:
        return None
    return Table(
        title="published values",
        stub=("model", "task", "method", "keep"),
        groups=tuple(("", (name,)) for name in ("protocol", "published", "measured", "difference", "source")),
        rows=tuple(rows),
        caption="Published values, and what was measured here. In brackets: what was different in our protocol.",
        words=("protocol", "source"),
    )


def _other_protocol(cell: Published, mean: Mean) -> str:
    """In which parts of the protocol the measurement differs from the published one."""
    conditions = {**mean.conditions[0], **dict(mean.column.setting)}
    return ", ".join(
        f"{name} {conditions[name]} here"
        for name, value in cell.protocol.items()
        if name in conditions and str(conditions[name]) != value
    )


def _row(names: tuple[str, ...], *cells: Cell) -> Row:
    return Row(names=names, cells=cells)


def _section(results: TaskResults, suffix: str) -> Section:
    look = looks(results.lines)
    tables = (*quality_tables(results), *cost_tables(results))
    with styled():
        plots = (
            quality_against_macs(results, look),
            zero_shot_bars(results, look),
            search_curves(results.runs, look),
            layer_keep_rates(results.runs),
            latency_against_macs(results, look),
        )
    drawn = tuple(replace(plot, name=f"{plot.name}{suffix}") for plot in plots if plot is not None)
    return Section(results.name, tables, drawn)


def _suffixes(results: Sequence[TaskResults]) -> list[str]:
    """What is behind the names of each section's plots, which become files: no more than letters, no two alike."""
    if len(results) == 1:
        return [""]
    names = [re.sub(r"[^\w.-]+", "-", f"{each.model[:LONGEST]}-{each.task[:LONGEST]}") for each in results]
    return [
        f"-{name}" if names.count(name) == 1 else f"-{name}-{names[: number + 1].count(name)}"
        for number, name in enumerate(names)
    ]
