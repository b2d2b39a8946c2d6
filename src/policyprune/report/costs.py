"""Tables of what finding a mask took, and of what the smaller model takes."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, stdev

from policyprune.report.lines import DENSE, Line
from policyprune.report.means import Mean
from policyprune.report.metrics import Setting, setting_title, title
from policyprune.report.results import TaskResults
from policyprune.report.runs import FINISHED, STAGES, Run
from policyprune.report.table import Cell, Row, Table
from policyprune.runs.rows import NOISY

Key = tuple[float, Line]  # a keep rate and a row
STUB = ("keep", "method", "tuning")
SIZES = {  # what each is divided by, and the unit that it has then
    "parameters": (1e6, "M"),
    "block_macs": (1e9, "G"),
    "checkpoint": (1.0, "MB"),
    "latency_ratio": (1.0, ""),
    "block_latency_share": (1.0, ""),
    "latency": (1.0, "ms"),
    "block_latency": (1.0, "ms"),
}


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
    cells = {key: _costs(runs, STAGES if key[1].tuning else STAGES[:-1]) for key, runs in finished.items()}
    return Table(
        title=f"cost of pruning {results.words}",
        stub=STUB,
        groups=(
            ("seconds", STAGES),
            ("search", ("forward passes",)),
            ("calibration", ("sequences", "tokens", "backward")),
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
        caption=f"Size and speed of {results.words}, dense and shrunk. Tuning keeps the mask.{_how_timed(means)}",
    )


def _rows(results: TaskResults, cells: Mapping[Key, tuple[Cell, ...]]) -> Iterator[Row]:
    """The rows in order, the largest keep rate first, with a rule below each keep rate."""
    order = {line: number for number, line in enumerate(results.lines)}
    keys: list[Key | None] = [*sorted(cells, key=lambda key: (-key[0], order[key[1]])), None]
    for key, following in pairwise(keys):
        assert key is not None
        keep, line = key
        names = ("" if line.method == DENSE else f"{keep:g}", line.method, line.tuning)
        yield Row(names=names, cells=cells[key], rule=following is None or keep != following[0])


def _costs(runs: Sequence[Run], stages: Sequence[str]) -> tuple[Cell, ...]:
    """Seconds of each stage, forward passes, calibration sequences, tokens and backward passes, and memory."""
    seconds = [_mean([run.seconds(stage) for run in runs] if stage in stages else []) for stage in STAGES]
    forwards = _mean([run.search.get("forwards") for run in runs], digits=0)
    memory = _mean([run.peak_memory(stages) for run in runs], digits=0)
    uses = {stage: use for stage, use in runs[0].calibration.items() if stage in stages}
    sequences = " / ".join(_count(uses[stage].sequences if stage in uses else None) for stage in stages)
    tokens = " / ".join(_count(uses[stage].tokens if stage in uses else None) for stage in stages)
    stated = any(use.backward is not None for use in uses.values())
    backward = ", ".join(stage for stage, use in uses.items() if use.backward) or ("none" if stated else "")
    return (*seconds, forwards, Cell(sequences), Cell(tokens), Cell(backward), memory)


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
