"""Plots of the smaller models: quality and latency against multiply-accumulates, zero-shot accuracies."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes

from policyprune.report.lines import DENSE, Line
from policyprune.report.means import ARROWS, Mean, better, setting_title, title
from policyprune.report.plots import FAINT, INK, WIDTH, Look, Plot, legend, log_ticks, panels, percent
from policyprune.report.results import TaskResults
from policyprune.runs.summary import NOISY

METRICS = ("perplexity", "accuracy", "f1", "exact_match", "matthews", "pearson", "spearman", "zero_shot_mean")
ZERO_SHOT = ("acc_norm", "acc")  # the first that a task has
MOST = 4  # panels
STAR: Any = {"marker": "*", "markersize": 9, "color": INK, "linestyle": "none", "label": DENSE}
LEVEL: Any = {"color": FAINT, "linewidth": 0.8, "linestyle": (0, (4, 3)), "zorder": 1}
RING: Any = {
    "marker": "o",
    "markersize": 9,
    "markerfacecolor": "none",
    "markeredgecolor": FAINT,
    "markeredgewidth": 0.6,
    "linestyle": "none",
    "zorder": 1,
}
RUIN = 30  # times the perplexity of the dense model: what is above says nothing, and would press the rest together


class Point(NamedTuple):
    """Where a mean is drawn."""

    x: float
    y: float
    mean: Mean


class Macs(NamedTuple):
    """Multiply-accumulates by method and keep rate (tuning changes none), and those of the dense model."""

    of: dict[tuple[str, float | None], float]
    dense: float

    @property
    def title(self) -> str:
        """What the axis of shares says."""
        return f"multiply-accumulates of the blocks, % of dense ({self.dense / 1e9:,.2f} G)"


def quality_against_macs(results: TaskResults, looks: Mapping[Line, Look]) -> Plot | None:
    """A panel per metric and setting, a line per method through its keep rates, the dense model as a star."""
    macs = _macs(results)
    columns = dict.fromkeys(
        (mean.column.metric, mean.column.setting) for mean in results.means if mean.column.metric in METRICS
    )
    if not columns or macs is None:
        return None
    shown = sorted(columns, key=lambda column: METRICS.index(column[0]))[:MOST]
    cut = False
    figure, axes = panels(len(shown), 3 if len(shown) == 3 else 2, 2.2)
    for (metric, setting), panel in zip(shown, axes, strict=True):
        means = [mean for mean in results.means if (mean.column.metric, mean.column.setting) == (metric, setting)]
        for line, points in _points(means, macs):
            _draw(panel, points, looks[line], line.title)
        dense = next((mean.value for mean in means if mean.line.method == DENSE), None)
        if dense is not None:
            panel.axhline(dense, **LEVEL)
            panel.plot(1.0, dense, **STAR)
        if metric == "perplexity":
            values = [mean.value for mean in means if mean.value is not None]
            if dense is not None and max(values) > (limit := RUIN * dense):
                panel.set_ylim(0.8 * min(values), limit)
                cut = True
            log_ticks(panel)
        panel.set_title(", ".join(filter(None, (title(metric), setting_title(setting)))) + f" {ARROWS[better(metric)]}")
        percent(panel.xaxis)
    figure.supxlabel(macs.title, fontsize=8)
    legend(figure, axes)
    caption = (
        "Quality against multiply-accumulates of the shrunk models, mean over seeds. Bars: standard deviation over "
        "seeds; dashed: the dense model."
    )
    if cut:
        caption += f" Perplexities above {RUIN} times the dense one are cut off."
    return Plot("quality-macs", caption, figure)


def latency_against_macs(results: TaskResults, looks: Mapping[Line, Look]) -> Plot | None:
    """A panel per batch size and length of the ratio to the dense model in the same run.

    On the dashed line latency falls as multiply-accumulates do. What is noisy has a ring.
    """
    macs = _macs(results)
    means = [mean for mean in results.means if mean.column.metric == "latency_ratio" and mean.value is not None]
    settings = list(dict.fromkeys(mean.column.setting for mean in means))
    if not settings or macs is None:
        return None
    figure, axes = panels(len(settings), 2, 2.5)
    for setting, panel in zip(settings, axes, strict=True):
        panel.axline((1, 1), slope=1, **{**LEVEL, "linewidth": 1}, label="in step with MACs")
        for line, points in _points([mean for mean in means if mean.column.setting == setting], macs):
            _draw(panel, points, looks[line], line.title, joined=False)
            noisy = [point for point in points if point.mean.noise]
            if noisy:
                panel.plot([point.x for point in noisy], [point.y for point in noisy], **RING, label="noisy")
        panel.plot(1.0, 1.0, **STAR)
        shape = dict(setting)
        panel.set_title(f"{shape.get('batch_size', '?')} x {shape.get('length', '?')} tokens")
        panel.set_ylabel("latency, % of dense")
        for axis in (panel.xaxis, panel.yaxis):
            percent(axis)
        low = min(panel.get_xlim()[0], panel.get_ylim()[0])
        panel.set_xlim(low, 1.05)
        panel.set_ylim(low, max(1.05, panel.get_ylim()[1]))
    figure.supxlabel(macs.title, fontsize=8)
    legend(figure, axes)
    caption = (
        "Latency of a forward pass of the shrunk models as a share of the dense model's in the same run, against their "
        "multiply-accumulates, mean over seeds. Bars: standard deviation over seeds; for one seed the interquartile "
        f"range of the rounds. Ring: that range is above {100 * NOISY:.0f} % of the median, or there was one round."
    )
    return Plot("latency-macs", caption, figure)


def zero_shot_bars(results: TaskResults, looks: Mapping[Line, Look]) -> Plot | None:
    """A panel per keep rate, a group of bars per task, a bar per method; the dense model as a line across the group."""
    values: dict[tuple[Line, float | None, str], tuple[float, Mean]] = {}
    for metric in ZERO_SHOT:
        for mean in results.means:
            task = dict(mean.column.setting).get("task")
            if mean.column.metric == metric and task is not None and mean.value is not None:
                values.setdefault((mean.line, mean.column.keep, str(task)), (mean.value, mean))
    tasks: dict[str, str] = {}  # and the metric of each
    for (_, _, task), (_, mean) in values.items():
        tasks.setdefault(task, mean.column.metric)
    keeps = [keep for keep in results.keeps if any(key[1] == keep for key in values if key[0].method != DENSE)]
    if not tasks or not keeps:
        return None
    figure, axes = panels(len(keeps), 1, 1.5, sharex=True)
    figure.set_figwidth(WIDTH)
    for keep, panel in zip(keeps, axes, strict=True):
        lines = [line for line in results.lines if line.method != DENSE and any(k[:2] == (line, keep) for k in values)]
        for number, line in enumerate(lines):
            left, width = 0.82 * ((number + 0.5) / len(lines) - 0.5), 0.82 / len(lines)
            bars = [
                Point(place + left, *values[line, keep, task])
                for place, task in enumerate(tasks)
                if (line, keep, task) in values
            ]
            _bars(panel, bars, 0.92 * width, looks[line], line.title)
        for place, task in enumerate(tasks):
            dense = next(
                (value for key, (value, _) in values.items() if key[0].method == DENSE and key[2] == task), None
            )
            if dense is not None:
                panel.hlines(dense, place - 0.44, place + 0.44, color=INK, linewidth=1.2, label=DENSE)
        panel.set_xticks(range(len(tasks)), [f"{task}\n{title(metric)}" for task, metric in tasks.items()])
        panel.tick_params(axis="x", length=0, labelbottom=panel is axes[-1])
        panel.grid(visible=False, axis="x")
        panel.set_title(f"keep {keep:g}" if keep is not None else "")
        panel.set_ylabel("accuracy")
        panel.set_ylim(0, None)
        panel.set_xlim(-0.55, len(tasks) - 0.45)
    legend(figure, axes)
    caption = (
        "Zero-shot accuracy, normalised by length (acc_norm) where the task has it. Bars: standard error; line: the "
        "dense model."
    )
    return Plot("zero-shot", caption, figure)


def _macs(results: TaskResults) -> Macs | None:
    means = [mean for mean in results.means if mean.column.metric == "block_macs"]
    dense = next((mean.value for mean in means if mean.line.method == DENSE), None)
    of = {(mean.line.method, mean.column.keep): mean.value for mean in means if mean.value is not None}
    return Macs(of, dense) if dense else None


def _points(means: Sequence[Mean], macs: Macs) -> Iterator[tuple[Line, list[Point]]]:
    """The points of each row in the order of their shares; rows without any are left out."""
    for line in dict.fromkeys(mean.line for mean in means if mean.line.method != DENSE):
        points = [
            Point(macs.of[line.method, mean.column.keep] / macs.dense, mean.value, mean)
            for mean in means
            if mean.line == line and mean.value is not None and (line.method, mean.column.keep) in macs.of
        ]
        if points:
            yield line, sorted(points, key=lambda point: point.x)


def _draw(panel: Axes, points: Sequence[Point], look: Look, name: str, joined: bool = True) -> None:
    bars = [_bar(point) for point in points]
    panel.errorbar(
        [point.x for point in points],
        [point.y for point in points],
        yerr=bars if any(bars) else None,
        color=look.color,
        marker=look.marker,
        linestyle=look.stroke if joined else "none",
        markerfacecolor="white" if look.hollow else look.color,
        markeredgecolor=look.color if look.hollow else "white",
        markeredgewidth=1.0 if look.hollow else 0.5,
        capsize=2,
        elinewidth=0.9,
        label=name,
    )


def _bar(point: Point) -> float:
    """Half a bar: the deviation over seeds, for one seed half the range of the rounds where it is a time."""
    if point.mean.deviation is not None:
        return point.mean.deviation
    return point.mean.spread * point.y / 2 if point.mean.spread is not None else 0.0


def _bars(panel: Axes, points: Sequence[Point], width: float, look: Look, name: str) -> None:
    panel.bar(
        [point.x for point in points],
        [point.y for point in points],
        width,
        yerr=[point.mean.stderr or 0.0 for point in points],
        color=look.color,
        hatch="//////" if look.hollow else None,
        edgecolor="white",
        linewidth=0.3,
        error_kw={"elinewidth": 0.7, "ecolor": INK},
        label=name,
    )
