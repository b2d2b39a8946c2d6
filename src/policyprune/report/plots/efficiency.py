"""Quality and latency against multiply-accumulates."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from policyprune.report.measures import DENSE, Line
from policyprune.report.metrics import ARROWS, better, place_title, title
from policyprune.report.plots.style import FAINT, INK, Look, Plot, legend, log_ticks, panels, percent
from policyprune.report.quality import Subject
from policyprune.runs.rows import NOISY

METRICS = ("perplexity", "accuracy", "f1", "exact_match", "matthews", "pearson", "spearman", "zero_shot_mean")
MOST = 4  # panels
RING: Any = {"marker": "o", "markersize": 10, "markerfacecolor": "none", "markeredgecolor": FAINT, "linestyle": "none"}
RUIN = 30  # times the perplexity of the dense model: what is above says nothing, and would press the rest together


def quality_against_macs(subject: Subject, looks: Mapping[Line, Look]) -> Plot | None:
    """A panel per metric and protocol, a line per method through its keep rates, the dense model as a star."""
    macs, dense_macs = _macs(subject)
    cells = subject.cells[subject.cells["metric"].isin(METRICS)]
    columns = sorted(dict.fromkeys(zip(cells["metric"], cells["place"], strict=True)), key=_rank)[:MOST]
    if not columns or not macs or not dense_macs:
        return None
    cut = False
    figure, axes = panels(len(columns), 3 if len(columns) == 3 else 2, 2.3)
    for (metric, place), own in zip(columns, axes, strict=True):
        of = cells[(cells["metric"] == metric) & (cells["place"] == place)]
        for line, points in _lines(of):
            found = [(macs[line.method, p.keep] / dense_macs, p) for p in points if (line.method, p.keep) in macs]
            _draw(own, found, looks[line], line.title)
        dense = of[of["method"] == DENSE]
        if len(dense):
            own.plot(1.0, dense["mean"].iloc[0], marker="*", markersize=9, color=INK, linestyle="none", label=DENSE)
        if metric == "perplexity":
            if len(dense) and of["mean"].max() > (limit := RUIN * dense["mean"].iloc[0]):
                own.set_ylim(0.8 * of["mean"].min(), limit)
                cut = True
            log_ticks(own)
        own.set_ylabel(", ".join(filter(None, (title(metric), place_title(place)))) + f" {ARROWS[better(metric)]}")
        percent(own.xaxis)
    figure.supxlabel(f"multiply-accumulates of the blocks, % of dense ({dense_macs / 1e9:,.2f} G)", fontsize=8)
    legend(figure, axes)
    caption = "Quality against multiply-accumulates of the shrunk models. Bars: standard deviation over seeds."
    if cut:
        caption += f" Perplexities above {RUIN} times the dense one are cut off."
    return Plot("quality-macs", caption, figure)


def latency_against_macs(subject: Subject, looks: Mapping[Line, Look]) -> Plot | None:
    """A panel per batch size and length of the ratio to the dense model in the same run.

    On the dashed line latency falls as multiply-accumulates do. What is noisy has a ring.
    """
    macs, dense_macs = _macs(subject)
    cells = subject.cells[(subject.cells["metric"] == "latency_ratio") & subject.cells["mean"].notna()]
    places = list(dict.fromkeys(cells["place"]))
    if not places or not macs or not dense_macs:
        return None
    figure, axes = panels(len(places), 2, 2.5)
    for place, own in zip(places, axes, strict=True):
        of = cells[cells["place"] == place]
        own.axline((1, 1), slope=1, color=FAINT, linestyle="--", linewidth=1, label="in step with MACs")
        for line, points in _lines(of):
            found = [(macs[line.method, p.keep] / dense_macs, p) for p in points if (line.method, p.keep) in macs]
            _draw(own, found, looks[line], line.title, joined=False)
            noisy = [(x, point.mean) for x, point in found if point.noise]
            if noisy:
                own.plot([x for x, _ in noisy], [y for _, y in noisy], **RING, label="noisy")
        own.plot(1.0, 1.0, marker="*", markersize=9, color=INK, linestyle="none", label=DENSE)
        known = dict(place)
        own.set_title(f"{known.get('batch_size', '?')} x {known.get('length', '?')} tokens")
        own.set_ylabel("latency, % of dense")
        for axis in (own.xaxis, own.yaxis):
            percent(axis)
        low = min(own.get_xlim()[0], own.get_ylim()[0])
        own.set_xlim(low, 1.05)
        own.set_ylim(low, max(1.05, own.get_ylim()[1]))
    figure.supxlabel(f"multiply-accumulates of the blocks, % of dense ({dense_macs / 1e9:,.2f} G)", fontsize=8)
    legend(figure, axes)
    caption = (
        "Latency of a forward pass of the shrunk models as a share of the dense model's, timed in turns in the same "
        "run, against their multiply-accumulates, mean over seeds. Bars: deviation over seeds, for one seed the "
        f"interquartile range of the rounds. Ring: that range is above {100 * NOISY:.0f} % of the median, or there was "
        "one round."
    )
    return Plot("latency-macs", caption, figure)


def _macs(subject: Subject) -> tuple[dict[tuple[str, float], float], float | None]:
    """Multiply-accumulates by method and keep rate (tuning changes none), and those of the dense model."""
    cells = subject.cells[subject.cells["metric"] == "block_macs"]
    dense = cells[cells["method"] == DENSE]["mean"]
    return {(own.method, own.keep): own.mean for own in cells.itertuples()}, float(dense.iloc[0]) if len(
        dense
    ) else None


def _lines(cells: pd.DataFrame) -> Iterable[tuple[Line, list[Any]]]:
    for (model, task, method, tuning), own in cells.groupby(["model", "task", "method", "tuning"], sort=False):
        if method != DENSE:
            yield Line(model, task, method, tuning), list(own.dropna(subset="mean").itertuples())


def _draw(axes: Axes, found: list[tuple[float, Any]], look: Look, name: str, joined: bool = True) -> None:
    if not found:
        return
    found = sorted(found, key=lambda point: point[0])
    xs, ys = [x for x, _ in found], [p.mean for _, p in found]
    spread = [_bar(p) for _, p in found]
    axes.errorbar(
        xs,
        ys,
        yerr=spread if any(spread) else None,
        color=look.color,
        marker=look.marker,
        linestyle=look.stroke if joined else "none",
        markerfacecolor="white" if look.hollow else look.color,
        markeredgecolor=look.color if look.hollow else "white",
        markeredgewidth=1.0 if look.hollow else 0.5,
        capsize=2,
        elinewidth=1,
        label=name,
    )


def _bar(point: Any) -> float:
    """Half a bar: the deviation over seeds, for one seed half the range of the rounds where it is a time."""
    if point.deviation == point.deviation:
        return float(point.deviation)
    return float(point.spread * point.mean / 2) if point.spread == point.spread else 0.0


def _rank(column: tuple[str, tuple[Any, ...]]) -> int:
    return METRICS.index(column[0])
