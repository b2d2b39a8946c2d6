"""What plots look like, and the plots of a search."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from policyprune.report.lines import DENSE, Line
from policyprune.report.runs import FINISHED, Run

WIDTH = 6.4  # inches, the text width of a page
INK = "#222222"
FAINT = "#8a8a8a"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933")  # Okabe-Ito, Tol
MARKERS = ("o", "s", "D", "^", "v", "<", ">", "p")
ENTRY = 0.17  # inches that a line of the legend takes
RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "savefig.dpi": 200,
    "svg.hashsalt": "policyprune",
}
SMOOTHED = 0.05  # share of the steps that a point averages over
POINTS = 200
KINDS = {
    "attention": "attention heads",
    "ffn": "FFN channels",
    "attention_block": "attention blocks",
    "ffn_block": "FFN blocks",
    "layer": "layers",
}
ROW = 0.17  # inches


@dataclass(frozen=True)
class Plot:
    """A figure, the name of its files, and what is said below it."""

    name: str
    caption: str
    figure: Figure


@dataclass(frozen=True, kw_only=True)
class Look:
    """Colour, marker and stroke of one row of the tables, the same in all plots; hollow where more is done to it."""

    color: str
    marker: str
    stroke: str
    hollow: bool


def looks(lines: Sequence[Line]) -> dict[Line, Look]:
    """A colour and a marker per method; before its tuning or recovery it is dashed and hollow. Many share colours."""
    methods = list(dict.fromkeys(line.method for line in lines if line.method != DENSE))
    tuned, recovered = ({line.method for line in lines if getattr(line, done)} for done in ("tuning", "recovery"))
    look = {}
    for line in lines:
        if line.method != DENSE:
            number = methods.index(line.method)
            hollow = (line.method in tuned and not line.tuning) or (line.method in recovered and not line.recovery)
            stroke = ("--" if hollow else "-", "-." if hollow else ":")[number >= len(COLORS)]
            look[line] = Look(
                color=COLORS[number % len(COLORS)],
                marker=MARKERS[number % len(MARKERS)],
                stroke=stroke,
                hollow=hollow,
            )
    return look


@contextmanager
def styled() -> Iterator[None]:
    """Draw in this style during the block, and leave matplotlib's settings alone."""
    with mpl.rc_context(RC):
        yield


def panels(count: int, columns: int, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of the page's width with `count` panels, at most `columns` in a row, each `height` inches high."""
    columns = min(count, columns)
    rows = -(-count // columns)
    width = WIDTH if columns > 1 else 0.68 * WIDTH
    figure = Figure(figsize=(width, rows * height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for spare in axes[count:]:
        spare.remove()
    for above in axes[: max(0, count - columns)]:
        above.tick_params(labelbottom=True)  # with a shared axis too: the panel below may be a spare one
    return figure, axes[:count]


def legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend above all panels, each entry once; of points with bars the points alone."""
    entries = {
        label: handle.lines[0] if isinstance(handle, ErrorbarContainer) else handle
        for panel in axes
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    if entries:
        columns = min(len(entries), 4 if figure.get_figwidth() >= WIDTH else 2)
        figure.set_figheight(figure.get_figheight() + ENTRY * -(-len(entries) // columns))
        figure.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=columns)


def percent(axis: Axis) -> None:
    """An axis of shares, in whole percents."""
    axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def log_ticks(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers at 1, 2 and 5."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 300 else (1.0,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def search_curves(runs: Sequence[tuple[Run, list[Line]]], looks: Mapping[Line, Look]) -> Plot | None:
    """A panel per keep rate, a line per method; runs that did not finish are left out."""
    curves: dict[float, dict[Line, list[pd.Series]]] = defaultdict(lambda: defaultdict(list))
    for run, lines in runs:
        curve = _curve(run)
        if curve is not None and run.keep is not None:
            curves[run.keep][lines[-1]].append(curve)
    if not curves:
        return None
    keeps = sorted(curves, reverse=True)
    columns = 2 if len(keeps) in (2, 4) else 3
    figure, axes = panels(len(keeps), columns, 2.1, sharex=True)
    for number, (keep, panel) in enumerate(zip(keeps, axes, strict=True)):
        for line, seeds in curves[keep].items():
            grid = np.linspace(max(seed.index[0] for seed in seeds), min(seed.index[-1] for seed in seeds), POINTS)
            losses = np.stack([np.interp(grid, seed.index, seed.to_numpy()) for seed in seeds])
            look = looks[line]
            panel.plot(grid, losses.mean(0), color=look.color, linestyle=look.stroke, label=line.method)
            if len(seeds) > 1:
                panel.fill_between(grid, losses.min(0), losses.max(0), color=look.color, alpha=0.18, linewidth=0)
        panel.set_title(f"keep {keep:g}")
        panel.set_ylabel("loss, nats" if number % columns == 0 else "")
        panel.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    figure.supxlabel("forward passes", fontsize=8)
    legend(figure, axes)
    caption = (
        f"Loss of the masks that the search tries, a running mean over {SMOOTHED:.0%} of its steps, against forward "
        "passes. Line: mean over seeds; band: from the lowest to the highest seed."
    )
    return Plot("search-curves", caption, figure)


def layer_keep_rates(runs: Sequence[tuple[Run, list[Line]]]) -> Plot | None:
    """A panel per kind of unit; a row per method, in groups of one keep rate; the mean over seeds."""
    rates: dict[tuple[float, str], list[pd.DataFrame]] = defaultdict(list)
    for run, lines in runs:
        if run.status == FINISHED and run.keep is not None and run.keep_rates:
            rates[run.keep, lines[0].method].append(pd.DataFrame(run.keep_rates))
    if not rates:
        return None
    means = {
        key: pd.concat(frames).pivot_table(index="kind", columns="layer", values="rate", aggfunc="mean")
        for key, frames in rates.items()
    }
    kinds = list(dict.fromkeys(kind for mean in means.values() for kind in mean.index))
    keeps = sorted({keep for keep, _ in means}, reverse=True)
    every = list(dict.fromkeys(method for _, method in means))  # the same order at every keep rate
    methods = {keep: [method for method in every if (keep, method) in means] for keep in keeps}
    heights = [len(names) for names in methods.values()]
    height = max(1.5, ROW * sum(heights) + 0.3 * len(keeps) + 0.7)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.subplots(len(keeps), len(kinds), squeeze=False, sharex=True, height_ratios=heights)
    for keep, row in zip(keeps, grid, strict=True):
        for kind, panel in zip(kinds, row, strict=True):
            names = [method for method in methods[keep] if kind in means[keep, method].index]
            table = pd.DataFrame([means[keep, method].loc[kind] for method in names])
            if table.empty:
                panel.set_axis_off()
                continue
            panel.grid(visible=False)
            extent = (table.columns[0] - 0.5, table.columns[-1] + 0.5, len(table) - 0.5, -0.5)
            image = panel.imshow(
                table, vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="none", extent=extent
            )
            panel.set_yticks(range(len(names)), names if kind == kinds[0] else [])
            panel.tick_params(length=0)
            panel.set_title(f"{KINDS.get(kind, kind)}, keep {keep:g}")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
            panel.hlines([place + 0.5 for place in range(len(names) - 1)], *extent[:2], color="white", linewidth=0.8)
            panel.spines[:].set_color(FAINT)
            panel.spines[:].set_visible(True)
    for panel in grid[-1]:
        panel.set_xlabel("layer")
    bar = figure.colorbar(image, ax=grid, shrink=min(1.0, 2.0 / figure.get_figheight()), aspect=18, pad=0.02)
    bar.set_label("kept units")
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    bar.outline.set_visible(False)  # type: ignore[operator]
    return Plot("keep-rates", "Share of its units that each layer keeps, mean over seeds.", figure)


def _curve(run: Run) -> pd.Series | None:
    """The smoothed loss by forward passes, None where the search has no steps."""
    if run.status != FINISHED:
        return None
    steps = [step for step in run.curve if step.get("loss") is not None and step.get("forwards") is not None]
    if len(steps) < 2:
        return None
    curve = pd.Series([step["loss"] for step in steps], index=[step["forwards"] for step in steps], dtype=float)
    return curve.rolling(max(1, round(SMOOTHED * len(curve))), min_periods=1).mean()
