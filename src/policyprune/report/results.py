"""What all runs of one model on one task gave: means, rows in order, how the runs ended, what sets rows apart."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from policyprune.report.lines import DENSE, Line
from policyprune.report.means import Column, Mean
from policyprune.report.reference import Published
from policyprune.report.runs import FINISHED, UNFINISHED, Run

MANY = 3  # keep rates that are named one by one
HASHES = {"tokenizer": "tokenizer hash", "test_text": "test text hash"}


@dataclass(frozen=True, kw_only=True)
class TaskResults:
    """One model on one task. `states` has how the runs of each row and keep rate ended."""

    model: str
    task: str
    runs: list[tuple[Run, list[Line]]]
    means: list[Mean]
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
        """The heading of its section."""
        return f"{self.model}, {self.task}"

    @property
    def words(self) -> str:
        """What its captions are about."""
        return f"{self.model} on {self.task}"

    def state(self, line: Line, keep: float | None) -> str:
        """Why a row has no values at a keep rate; empty where a run finished, or where none was to fill the row."""
        states = self.states.get((line, keep))
        if states is None:
            return "missing" if any(known == line for known, _ in self.states) else ""
        return "" if FINISHED in states else next(state for state in UNFINISHED if state in states)

    def published_of(self, line: Line, column: Column) -> float | None:
        """The published value of a cell, None where none is known; that of the dense model once, at the first keep."""
        if line.method == DENSE and column.keep != self.keeps[0]:
            return None
        return next((cell.value for cell in self.published if cell.is_of(line, column)), None)


def results_of(
    runs: Sequence[tuple[Run, list[Line]]], means: Sequence[Mean], published: Sequence[Published]
) -> Iterator[TaskResults]:
    """The results of each model and task, in the order in which their runs began."""
    for model, task in dict.fromkeys((run.model, run.task) for run, lines in runs if lines):
        members = [(run, lines) for run, lines in runs if (run.model, run.task) == (model, task)]
        of_task = [mean for mean in means if (mean.line.model, mean.line.task) == (model, task)]
        states: dict[tuple[Line, float | None], list[str]] = defaultdict(list)
        for run, lines in members:
            if run.keep is not None:
                for line in lines:
                    states[line, run.keep].append(run.status)
        dense = Line(model=model, task=task, method=DENSE)
        lines = list(dict.fromkeys([dense, *(line for line, _ in states), *(mean.line for mean in of_task)]))
        yield TaskResults(
            model=model,
            task=task,
            runs=members,
            means=of_task,
            lines=lines,
            states=dict(states),
            published=list(published),
            warnings=_warnings(members),
        )


def differences(means: Sequence[Mean]) -> dict[Line, list[str]]:
    """For each row what sets it apart from the others in some column: `dtype bfloat16 at keep 0.5, elsewhere float32`.

    Only rows of one metric and setting are compared: others are measured in different ways by design.
    """
    columns: dict[tuple[Any, ...], dict[Line, dict[float | None, list[dict[str, Any]]]]] = {}
    for mean in means:
        rows = columns.setdefault((mean.column.metric, mean.column.setting), {})
        rows.setdefault(mean.line, {}).setdefault(mean.column.keep, []).extend(mean.conditions)
    remarks: dict[Line, list[str]] = defaultdict(list)
    for rows in columns.values():
        usual = _usual([each for keeps in rows.values() for several in keeps.values() for each in several])
        for line, keeps in rows.items():
            remarks[line] += [text for text in _differences_of(keeps, usual) if text not in remarks[line]]
    return dict(remarks)


def _usual(conditions: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Of each condition in which some differ what most have."""
    usual: dict[str, str] = {}
    for key in dict.fromkeys(key for each in conditions for key in each):
        counts = Counter(_text(each[key]) for each in conditions if each.get(key) is not None)
        if len(counts) > 1:
            usual[key] = counts.most_common(1)[0][0]
    return usual


def _differences_of(
    keeps: Mapping[float | None, Sequence[Mapping[str, Any]]], usual: Mapping[str, str]
) -> Iterator[str]:
    for key, most in usual.items():
        where: dict[str, list[float | None]] = {}
        mixed = False
        for keep, conditions in keeps.items():
            values = dict.fromkeys(_text(each[key]) for each in conditions if each.get(key) is not None)
            for value in values:
                if value != most:
                    where.setdefault(value, []).append(keep)
                    mixed = mixed or len(values) > 1
        for value, at in where.items():
            only = "" if len(at) == len(keeps) else f" at keep {_listed(at)}"
            some = " in some runs" if mixed else ""
            yield f"{HASHES.get(key, key.replace('_', ' '))} {value}{only}{some}, elsewhere {most}"


def _listed(keeps: Sequence[float | None]) -> str:
    names = [f"{keep:g}" for keep in keeps if keep is not None]
    return ", ".join(names[:MANY]) + (" and more" if len(names) > MANY else "")


def _text(value: Any) -> str:
    if value == "":
        return "empty"
    return repr(value) if isinstance(value, str) and value.isspace() else str(value)


def _warnings(runs: Sequence[tuple[Run, list[Line]]]) -> dict[Line, list[str]]:
    """What the records of each row's runs warn of, with the runs that do: `... (keep 0.8, seed 0)`."""
    sources: dict[Line, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for run, lines in runs:
        keep = "" if run.keep is None else f"keep {run.keep:g}, "
        for text in run.warnings:
            for line in lines:
                sources[line][text].append(f"{keep}seed {run.seed}")
    return {
        line: [f"warning: {text} ({'; '.join(seeds)})" for text, seeds in texts.items()]
        for line, texts in sources.items()
    }
