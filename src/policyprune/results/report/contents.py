"""What a report has in it: sections of tables and plots."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from policyprune.results.plots.curves import search_curves
from policyprune.results.plots.efficiency import latency_against_macs, quality_against_macs
from policyprune.results.plots.layers import layer_keep_rates
from policyprune.results.plots.style import Plot, looks, styled
from policyprune.results.plots.zero_shot import zero_shot_bars
from policyprune.results.report.costs import cost_tables
from policyprune.results.report.measures import DENSE, Line, lines_of, measured, over_seeds
from policyprune.results.report.overview import counts, published_table, unfinished_table
from policyprune.results.report.quality import Subject, quality_tables
from policyprune.results.report.reference import Published
from policyprune.results.report.runs import Run
from policyprune.results.report.table import Table


@dataclass(frozen=True)
class Section:
    """A heading, tables and plots below it."""

    title: str
    tables: tuple[Table, ...]
    plots: tuple[Plot, ...] = ()


@dataclass(frozen=True)
class Report:
    """All sections, the cells behind them, and in a line what became of the runs."""

    title: str
    summary: str
    sections: tuple[Section, ...]
    cells: pd.DataFrame
    subjects: tuple[Subject, ...]
    runs: tuple[Run, ...]


def make_report(title: str, runs: Sequence[Run], published: Sequence[Published]) -> Report:
    """A section for each model and task, then the published values and the runs without results."""
    pairs = list(zip(runs, lines_of(runs), strict=True))
    cells = over_seeds(measured(runs))
    subjects = list(_subjects(pairs, cells, published))
    sections = [_section(subject, pairs, alone=len(subjects) == 1) for subject in subjects]
    for name, table in (
        ("Published values", published_table(published, subjects)),
        ("Runs without results", unfinished_table(pairs, subjects)),
    ):
        if table is not None:
            sections.append(Section(name, (table,)))
    return Report(title, counts(runs), tuple(sections), cells, tuple(subjects), tuple(runs))


def _subjects(
    pairs: Sequence[tuple[Run, list[Line]]], cells: pd.DataFrame, published: Sequence[Published]
) -> Iterator[Subject]:
    for model, task in dict.fromkeys((run.model, run.task) for run, lines in pairs if lines):
        own = cells[(cells["model"] == model) & (cells["task"] == task)]
        states: dict[tuple[Line, float | None], list[str]] = defaultdict(list)
        for run, lines in pairs:
            if (run.model, run.task) == (model, task) and run.keep is not None:
                for line in lines:
                    states[line, run.keep].append(run.status)
        expected = [Line(model, task, DENSE, ""), *(line for line, _ in states)]
        others = [Line(row.model, row.task, row.method, row.tuning) for row in own.itertuples()]
        yield Subject(model, task, own, list(dict.fromkeys([*expected, *others])), dict(states), list(published))


def _section(subject: Subject, pairs: Sequence[tuple[Run, list[Line]]], alone: bool) -> Section:
    own = [(run, lines) for run, lines in pairs if (run.model, run.task) == (subject.model, subject.task)]
    look = looks(subject.lines)
    tables = (*quality_tables(subject), *cost_tables(subject, own))
    with styled():
        found = (
            quality_against_macs(subject, look),
            zero_shot_bars(subject, look),
            search_curves(own, look),
            layer_keep_rates(own),
            latency_against_macs(subject, look),
        )
    suffix = "" if alone else f"-{subject.model}-{subject.task.replace('/', '-')}"
    plots = tuple(Plot(f"{plot.name}{suffix}", plot.caption, plot.figure) for plot in found if plot is not None)
    return Section(subject.name, tables, plots)
