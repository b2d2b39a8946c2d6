"""Tables of what finding a mask took, and of what the smaller model takes."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import fmean, stdev

import pandas as pd

from policyprune.report.calibration import STAGES, budgets
from policyprune.report.measures import DENSE, Line
from policyprune.report.metrics import place_title, title
from policyprune.report.quality import Subject
from policyprune.report.runs import Run
from policyprune.report.table import Cell, Row, Table
from policyprune.runs.rows import NOISY

SIZES = {  # what each is divided by, and the unit that it has then
    "parameters": (1e6, "M"),
    "block_macs": (1e9, "G"),
    "checkpoint": (1.0, "MB"),
    "latency_ratio": (1.0, ""),
    "block_latency_share": (1.0, ""),
    "latency": (1.0, "ms"),
    "block_latency": (1.0, "ms"),
}


def cost_tables(subject: Subject, runs: Sequence[tuple[Run, list[Line]]]) -> Iterator[Table]:
    """The tables of one subject, from its finished runs and their lines."""
    done: dict[tuple[Line, float | None], list[Run]] = defaultdict(list)
    for run, lines in runs:
        if run.status == "finished" and run.keep is not None:
            for line in lines:
                done[line, run.keep].append(run)
    order = {line: number for number, line in enumerate(subject.lines)}
    keys = sorted(done, key=lambda key: (-(key[1] or 0), order[key[0]]))
    if keys:
        yield _search_table(subject, keys, done)
        yield from _size_table(subject)


def _search_table(
    subject: Subject, keys: Sequence[tuple[Line, float | None]], done: dict[tuple[Line, float | None], list[Run]]
) -> Table:
    groups = (
        ("seconds", STAGES),
        ("search", ("forward passes",)),
        ("calibration", ("sequences", "tokens", "backward")),
        ("memory", ("peak, MB",)),
    )
    rows = []
    for (line, keep), following in zip(keys, [*keys[1:], (None, None)], strict=True):
        own = done[line, keep]
        stages = STAGES if line.tuning else STAGES[:-1]
        seconds = [_mean([run.seconds(stage) for run in own] if stage in stages else []) for stage in STAGES]
        forwards = _mean([run.search.get("forwards") for run in own], digits=0)
        memory = _mean([run.peak_memory(stages) for run in own], digits=0)
        rows.append(
            Row(
                (f"{keep:g}", line.method, line.tuning),
                (*seconds, forwards, *_looked_at(own[0], stages), memory),
                rule=keep != following[1],
            )
        )
    caption = (
        f"What the masks of {subject.name} took: mean over seeds. Sequences and tokens are those of "
        "importance / search / tuning; backward says which of them went backwards through the model."
    )
    return Table(f"cost of pruning {subject.name}", ("keep", "method", "tuning"), groups, tuple(rows), caption)


def _looked_at(run: Run, stages: Sequence[str]) -> tuple[Cell, ...]:
    found = {stage: budget for stage, budget in budgets(run).items() if stage in stages}
    sequences, tokens = (
        " / ".join(_count(getattr(found.get(stage), what, None)) for stage in stages)
        for what in ("sequences", "tokens")
    )
    known = [budget.backward for budget in found.values() if budget.backward is not None]
    backward = ", ".join(stage for stage, budget in found.items() if budget.backward) or ("none" if known else "")
    return Cell(sequences), Cell(tokens), Cell(backward)


def _size_table(subject: Subject) -> Iterator[Table]:
    """Sizes and latencies by row and keep rate, where they were measured."""
    cells = subject.cells[subject.cells["metric"].isin(SIZES)]
    columns = list(dict.fromkeys((own.metric, own.place) for own in cells.itertuples()))
    columns.sort(key=lambda column: list(SIZES).index(column[0]))
    found: dict[tuple[float, Line], dict[tuple[object, ...], Cell]] = defaultdict(dict)
    for own in cells.itertuples():
        line = Line(own.model, own.task, own.method, own.tuning)
        keep = 1.0 if own.keep != own.keep else own.keep
        scale = SIZES[own.metric][0]
        shown = Cell(state="not finite")
        if own.mean == own.mean:
            spread = f"{own.deviation / scale:,.2f}" if own.deviation > 0 else ""
            shown = Cell(f"{own.mean / scale:,.2f}", spread, own.noise)
        found[keep, line][own.metric, own.place] = shown
    if not found:
        return
    order = {line: number for number, line in enumerate(subject.lines)}
    keys = sorted(found, key=lambda key: (-key[0], order[key[1]]))
    rows = [
        Row(
            ("" if line.method == DENSE else f"{keep:g}", line.method, line.tuning),
            tuple(found[keep, line].get(column, Cell()) for column in columns),
            rule=keep != following,
        )
        for (keep, line), following in zip(keys, [*(own for own, _ in keys[1:]), None], strict=True)
    ]
    groups = tuple(
        (
            ", ".join(filter(None, (title(metric), SIZES[metric][1]))),
            (place_title((k, v) for k, v in place if k != "batch_size") + _batch(place),),
        )
        for metric, place in columns
    )
    caption = (
        f"Size and speed of {subject.name}, dense and shrunk. A tuned model has the mask of the one before tuning."
        + _rounds(cells)
    )
    yield Table(f"size and speed of {subject.name}", ("keep", "method", "tuning"), groups, tuple(rows), caption)


def _rounds(cells: pd.DataFrame) -> str:
    """How times were taken, where there are any."""
    counts = {own["repeats"] for several in cells["conditions"] for own in several if "repeats" in own}
    if not counts:
        return ""
    said = " or ".join(str(count) for count in sorted(counts))
    return (
        f" Times: medians over {said} rounds; shares of the dense model's: of the ratio to the dense model in the same "
        "round, so these can be compared between runs and milliseconds cannot. "
        f"Noisy: the rounds' interquartile range is above {100 * NOISY:.0f} % of the median."
    )


def _batch(place: tuple[tuple[str, object], ...]) -> str:
    return "".join(f" x {value}" for key, value in place if key == "batch_size")


def _mean(values: Sequence[float | int | None], digits: int = 1) -> Cell:
    known = [float(value) for value in values if value is not None]
    if not known:
        return Cell()
    spread = f"{stdev(known):,.{digits}f}" if len(known) > 1 and stdev(known) > 0 else ""
    return Cell(f"{fmean(known):,.{digits}f}", spread)


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
