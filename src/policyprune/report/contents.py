"""What a report has in it: sections of tables and plots."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from policyprune.report.costs import cost_tables
from policyprune.report.measures import DENSE, Line, lines_of, measured, over_seeds
from policyprune.report.overview import counts, published_table, unfinished_table
from policyprune.report.plots.curves import search_curves
from policyprune.report.plots.efficiency import latency_against_macs, quality_against_macs
from policyprune.report.plots.layers import layer_keep_rates
from policyprune.report.plots.style import Plot, looks, styled
from policyprune.report.plots.zero_shot import zero_shot_bars
from policyprune.report.quality import Subject, quality_tables
from policyprune.report.reference import Published
from policyprune.report.runs import Run
from policyprune.report.table import Table

LONGEST = 60  # letters of a name that go into a file's


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
    sections = [_section(subject, pairs, suffix) for subject, suffix in zip(subjects, _suffixes(subjects), strict=True)]
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
        lines = list(dict.fromkeys([*expected, *others]))
        warnings = _warnings([pair for pair in pairs if (pair[0].model, pair[0].task) == (model, task)])
        yield Subject(model, task, own, lines, dict(states), list(published), warnings)


def _warnings(pairs: Sequence[tuple[Run, list[Line]]]) -> dict[Line, list[str]]:
    """What the records of each row's runs warn of, with the runs that do: `... (keep 0.8, seed 0)`."""
    found: dict[Line, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for run, lines in pairs:
        keep = "" if run.keep is None else f"keep {run.keep:g}, "
        for text in run.warnings:
            for line in lines:
                found[line][text].append(f"{keep}seed {run.seed}")
    return {line: [f"warning: {text} ({'; '.join(runs)})" for text, runs in own.items()] for line, own in found.items()}


def _suffixes(subjects: Sequence[Subject]) -> list[str]:
    """What is behind the names of each subject's plots, which become files: no more than letters, and no two alike."""
    if len(subjects) == 1:
        return [""]
    names = [re.sub(r"[^\w.-]+", "-", f"{own.model[:LONGEST]}-{own.task[:LONGEST]}") for own in subjects]
    return [
        f"-{name}" if names.count(name) == 1 else f"-{name}-{names[: number + 1].count(name)}"
        for number, name in enumerate(names)
    ]


def _section(subject: Subject, pairs: Sequence[tuple[Run, list[Line]]], suffix: str) -> Section:
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
    plots = tuple(Plot(f"{plot.name}{suffix}", plot.caption, plot.figure) for plot in found if plot is not None)
    return Section(subject.name, tables, plots)
