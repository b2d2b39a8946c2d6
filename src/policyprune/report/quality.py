"""Tables of how good the models are: methods against keep rates, or against zero-shot tasks."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from policyprune.report.lines import DENSE, Line
from policyprune.report.means import Column, Mean, leading
from policyprune.report.metrics import ARROWS, better, setting_title, signed, title, written
from policyprune.report.results import TaskResults, differences
from policyprune.report.table import Cell, Footnotes, Row, Table

Values = Mapping[tuple[Line, Column], Mean]


def quality_tables(results: TaskResults) -> Iterator[Table]:
    """A table per metric with the keep rates side by side, and one of all zero-shot tasks per keep rate."""
    means = [mean for mean in results.means if better(mean.column.metric) != 0]
    zero_shot = [mean for mean in means if "task" in dict(mean.column.setting)]
    not_zero_shot = [mean for mean in means if "task" not in dict(mean.column.setting)]
    for metric in dict.fromkeys(mean.column.metric for mean in not_zero_shot):
        of_metric = [mean for mean in not_zero_shot if mean.column.metric == metric]
        groups = {
            f"{setting_title(setting) or title(metric)} {ARROWS[better(metric)]}": [
                Column(metric, setting, keep) for keep in results.keeps
            ]
            for setting in dict.fromkeys(mean.column.setting for mean in of_metric)
        }
        yield _table(f"{title(metric)} of {results.words}", results, of_metric, groups, _keep_title)
    for keep in results.keeps:
        of_keep = _preferred([mean for mean in zero_shot if mean.column.keep in (keep, None)])
        if of_keep and (keep is None or {mean.line.method for mean in of_keep} - {DENSE}):
            columns = dict.fromkeys(Column(mean.column.metric, mean.column.setting, keep) for mean in of_keep)
            groups = {
                f"{title(metric)} {ARROWS[better(metric)]}": [column for column in columns if column.metric == metric]
                for metric in dict.fromkeys(column.metric for column in columns)
            }
            heading = f"zero-shot accuracy of {results.model}" + ("" if keep is None else f" at keep {keep:g}")
            yield _table(heading, results, of_keep, groups, lambda column: setting_title(column.setting))


def _preferred(means: Sequence[Mean]) -> list[Mean]:
    """Of each zero-shot task the accuracy that is normalised by length, where it has one."""
    normalised = {mean.column.setting for mean in means if mean.column.metric == "acc_norm"}
    return [mean for mean in means if mean.column.metric != "acc" or mean.column.setting not in normalised]


def _keep_title(column: Column) -> str:
    return "" if column.keep is None else f"keep {column.keep:g}"


def _table(
    heading: str,
    results: TaskResults,
    means: Sequence[Mean],
    groups: Mapping[str, Sequence[Column]],
    name: Callable[[Column], str],
) -> Table:
    """A table of some columns in groups; `name` gives the title of a column inside its group."""
    values = {(mean.line, mean.column): mean for mean in means}
    columns = [column for group in groups.values() for column in group]
    wanted = {line for line, _ in results.states} | {mean.line for mean in means}
    lines = [line for line in results.lines if line in wanted]
    ahead = {column: _leading(column, means) for column in columns}
    remarks = differences(means)
    footnotes = Footnotes()
    rows = []
    for line in lines:
        seeds = max((mean.n for mean in means if mean.line == line), default=0)
        cells = [_cell(results, line, column, values, seeds, line in ahead[column]) for column in columns]
        rows.append(
            Row(
                names=(line.method, line.tuning, str(seeds) if seeds and line.method != DENSE else ""),
                cells=tuple(cells),
                marks=footnotes.mark([*remarks.get(line, []), *results.warnings.get(line, [])]),
                rule=line.method == DENSE,
            )
        )
    several = any(mean.n > 1 for mean in means)
    caption = f"{heading[0].upper()}{heading[1:]}" + (": mean ± standard deviation over seeds." if several else ".")
    return Table(
        title=heading,
        stub=("method", "tuning", "seeds"),
        groups=tuple((group, tuple(map(name, members))) for group, members in groups.items()),
        rows=tuple(rows),
        caption=caption,
        notes=footnotes.notes,
    )


def _cell(results: TaskResults, line: Line, column: Column, values: Values, seeds: int, best: bool) -> Cell:
    """What a row has in a column; a row of which nothing is pruned says the same at every keep rate."""
    metric = column.metric
    mean = values.get((line, column)) or values.get((line, column._replace(keep=None)))
    published = results.published_of(line, column)
    if mean is None:
        remark = f"published {written(metric, published)}" if published is not None else ""
        return Cell(state=results.state(line, column.keep) or "not measured", remark=remark)
    if mean.value is None:
        return Cell(state="not finite")
    remarks = []
    if line.method != DENSE:
        unfinished = [state for state in results.states.get((line, column.keep), []) if state != "finished"]
        remarks += [f"n = {mean.n}"] if mean.n != seeds else []
        remarks += [f"{unfinished.count(state)} {state}" for state in dict.fromkeys(unfinished)]
    if published is not None:
        remarks.append(f"published {written(metric, published)}, {signed(metric, mean.value - published)}")
    spread = "" if mean.deviation is None else written(metric, mean.deviation)
    return Cell(written(metric, mean.value), spread=spread, remark=", ".join(remarks), best=best)


def _leading(column: Column, means: Sequence[Mean]) -> set[Line]:
    """The rows that are ahead in a column; the dense model takes no part."""
    return leading(
        column.metric, {mean.line: mean for mean in means if mean.column == column and mean.line.method != DENSE}
    )
