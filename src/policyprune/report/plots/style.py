"""How plots look: colours that colour-blind readers tell apart, and type that is legible at the width of a page."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from policyprune.report.lines import DENSE, Line

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


@dataclass(frozen=True)
class Plot:
    """A figure, the name of its files, and what is said below it."""

    name: str
    caption: str
    figure: Figure


@dataclass(frozen=True, kw_only=True)
class Look:
    """Colour, marker and stroke of one row of the tables, the same in all plots; hollow where it awaits tuning."""

    color: str
    marker: str
    stroke: str
    hollow: bool


def looks(lines: Sequence[Line]) -> dict[Line, Look]:
    """A colour and a marker per method; before its tuning it is dashed and hollow. Many methods share colours."""
    methods = list(dict.fromkeys(line.method for line in lines if line.method != DENSE))
    tuned = {line.method for line in lines if line.tuning}
    look = {}
    for line in lines:
        if line.method != DENSE:
            number, hollow = methods.index(line.method), line.method in tuned and not line.tuning
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
