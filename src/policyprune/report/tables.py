"""The tables of a report: how good the models are at each keep rate, what a mask took, what a smaller model takes."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, stdev

from policyprune.report.lines import DENSE, Line
from policyprune.report.means import (
    ARROWS,
    Column,
    Mean,
    Setting,
    better,
    leading,
    setting_title,
    signed,
    title,
    written,
)
from policyprune.report.results import TaskResults, differences
from policyprune.report.runs import FINISHED, STAGES, Run
from policyprune.report.table import Cell, Footnotes, Row, Table
from policyprune.runs.summary import NOISY

Values = Mapping[tuple[Line, Column], Mean]
Key = tuple[float, Line]  # a keep rate and a row
STUB = ("keep", "method", "tuning", "recovery")
TIMED = (*STAGES, "recovery")
SIZES = {  # what each is divided by, and the unit that it has then
    "parameters": (1e6, "M"),
    "block_macs": (1e9, "G"),
    "checkpoint": (1.0, "MB"),
    "latency_ratio": (1.0, ""),
    "block_latency_share": (1.0, ""),
    "latency": (1.0, "ms"),
    "block_latency": (1.0, "ms"),
}


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
                names=(line.method, line.tuning, line.recovery, str(seeds) if seeds and line.method != DENSE else ""),
                cells=tuple(cells),
                marks=footnotes.mark([*remarks.get(line, []), *results.warnings.get(line, [])]),
                rule=line.method == DENSE,
            )
        )
    several = any(mean.n > 1 for mean in means)
    caption = f"{heading[0].upper()}{heading[1:]}" + (": mean ± standard deviation over seeds." if several else ".")
    return Table(
        title=heading,
        stub=("method", "tuning", "recovery", "seeds"),
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


def cost_tables(results: TaskResults) -> Iterator[Table]:
    """What the masks took, and what the smaller models take, where there are finished runs."""
    finished: dict[Key, list[Run]] = defaultdict(list)
    for run, lines in results.runs:
        if run.status == FINISHED and run.keep is not None:
            for line in lines:
                finished[run.keep, line].append(run)
    if finished:
        yield _search_table(results, finished)
        sizes = [mean for mean in results.means if mean.column.metric in SIZES]
        if sizes:
            yield _size_table(results, sizes)


def _search_table(results: TaskResults, finished: Mapping[Key, Sequence[Run]]) -> Table:
    cells = {key: _costs(runs, _stages(key[1])) for key, runs in finished.items()}
    return Table(
        title=f"cost of pruning {results.words}",
        stub=STUB,
        groups=(
            ("seconds", TIMED),
            ("search", ("forward passes",)),
            ("calibration", ("sequences", "tokens", "backward")),
            ("recovery", ("training tokens",)),
            ("memory", ("peak, MB",)),
        ),
        rows=tuple(_rows(results, cells)),
        caption=f"Cost of pruning {results.words}, mean over seeds. Calibration sequences and tokens are those of "
        "importance / search / tuning; backward names the stages that go backwards through the model.",
    )


def _size_table(results: TaskResults, means: Sequence[Mean]) -> Table:
    columns = list(dict.fromkeys((mean.column.metric, mean.column.setting) for mean in means))
    columns.sort(key=lambda column: list(SIZES).index(column[0]))
    shown: dict[Key, dict[tuple[str, Setting], Cell]] = defaultdict(dict)
    for mean in means:
        keep = 1.0 if mean.column.keep is None else mean.column.keep
        shown[keep, mean.line][mean.column.metric, mean.column.setting] = _size(mean)
    cells = {key: tuple(values.get(column, Cell()) for column in columns) for key, values in shown.items()}
    return Table(
        title=f"size and speed of {results.words}",
        stub=STUB,
        groups=tuple((_size_title(metric), (_shape(setting),)) for metric, setting in columns),
        rows=tuple(_rows(results, cells)),
        caption=f"Size and speed of {results.words}, dense and shrunk. Tuning and recovery keep the mask."
        + _how_timed(means),
    )


def _rows(results: TaskResults, cells: Mapping[Key, tuple[Cell, ...]]) -> Iterator[Row]:
    """The rows in order, the largest keep rate first, with a rule below each keep rate."""
    order = {line: number for number, line in enumerate(results.lines)}
    keys: list[Key | None] = [*sorted(cells, key=lambda key: (-key[0], order[key[1]])), None]
    for key, following in pairwise(keys):
        assert key is not None
        keep, line = key
        names = ("" if line.method == DENSE else f"{keep:g}", line.method, line.tuning, line.recovery)
        yield Row(names=names, cells=cells[key], rule=following is None or keep != following[0])


def _stages(line: Line) -> tuple[str, ...]:
    """What was done for a row."""
    undone = {stage for stage, name in (("tuning", line.tuning), ("recovery", line.recovery)) if not name}
    return tuple(stage for stage in TIMED if stage not in undone)


def _costs(runs: Sequence[Run], stages: Sequence[str]) -> tuple[Cell, ...]:
    """Seconds of each stage, forward passes, calibration sequences, tokens and backward passes, training, memory."""
    seconds = [_mean([run.seconds(stage) for run in runs] if stage in stages else []) for stage in TIMED]
    forwards = _mean([run.search.get("forwards") for run in runs], digits=0)
    memory = _mean([run.peak_memory(stages) for run in runs], digits=0)
    trained = _mean([run.trained_on for run in runs] if "recovery" in stages else [], digits=0)
    looked = [stage for stage in stages if stage in STAGES]
    uses = {stage: use for stage, use in runs[0].calibration.items() if stage in looked}
    sequences = " / ".join(_count(uses[stage].sequences if stage in uses else None) for stage in looked)
    tokens = " / ".join(_count(uses[stage].tokens if stage in uses else None) for stage in looked)
    stated = any(use.backward is not None for use in uses.values())
    backward = ", ".join(stage for stage, use in uses.items() if use.backward) or ("none" if stated else "")
    return (*seconds, forwards, Cell(sequences), Cell(tokens), Cell(backward), trained, memory)


def _mean(values: Sequence[float | int | None], digits: int = 1) -> Cell:
    known = [float(value) for value in values if value is not None]
    if not known:
        return Cell()
    spread = f"{stdev(known):,.{digits}f}" if len(known) > 1 and stdev(known) > 0 else ""
    return Cell(f"{fmean(known):,.{digits}f}", spread=spread)


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _size(mean: Mean) -> Cell:
    if mean.value is None:
        return Cell(state="not finite")
    scale = SIZES[mean.column.metric][0]
    spread = f"{mean.deviation / scale:,.2f}" if mean.deviation else ""
    return Cell(f"{mean.value / scale:,.2f}", spread=spread, remark=mean.noise)


def _size_title(metric: str) -> str:
    return ", ".join(filter(None, (title(metric), SIZES[metric][1])))


def _shape(setting: Setting) -> str:
    """`128 tokens x 8`: length, and batch size where there is one."""
    batch_size = "".join(f" x {value}" for key, value in setting if key == "batch_size")
    return setting_title((key, value) for key, value in setting if key != "batch_size") + batch_size


def _how_timed(means: Sequence[Mean]) -> str:
    """How times were taken, where there are any."""
    counts = {each["repeats"] for mean in means for each in mean.conditions if "repeats" in each}
    if not counts:
        return ""
    rounds = " or ".join(str(count) for count in sorted(counts))
    return (
        f" Times are medians over {rounds} rounds. A share is the median ratio to the dense model in the same round: "
        "shares can be compared between runs, milliseconds cannot. "
        f"Noisy: the interquartile range of the rounds is above {100 * NOISY:.0f} % of their median."
    )
