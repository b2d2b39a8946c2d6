"""Search curves: the loss against forward passes, with a band over seeds."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter, MaxNLocator

from policyprune.report.measures import Line
from policyprune.report.plots.style import Look, Plot, legend, panels
from policyprune.report.runs import Run

SMOOTHED = 0.05  # share of the steps that a point averages over
POINTS = 200


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
    figure, axes = panels(len(keeps), 2, 2.2, sharex=True)
    for keep, own in zip(keeps, axes, strict=True):
        for line, seeds in curves[keep].items():
            end = min(seed.index[-1] for seed in seeds)
            grid = np.linspace(max(seed.index[0] for seed in seeds), end, POINTS)
            losses = np.stack([np.interp(grid, seed.index, seed.to_numpy()) for seed in seeds])
            look = looks[line]
            own.plot(grid, losses.mean(0), color=look.color, linestyle=look.stroke, label=line.method)
            if len(seeds) > 1:
                own.fill_between(grid, losses.min(0), losses.max(0), color=look.color, alpha=0.18, linewidth=0)
        own.set_title(f"keep {keep:g}")
        own.set_ylabel("loss of sampled masks, nats")
        own.xaxis.set_major_locator(MaxNLocator(5))
        own.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    for own in axes[-2:]:
        own.set_xlabel("forward passes")
        own.tick_params(labelbottom=True)
    legend(figure, axes)
    caption = (
        f"Loss of the masks that the search tries, a running mean over {SMOOTHED:.0%} of its steps, against forward "
        "passes. Line: mean over seeds; band: from the lowest to the highest seed."
    )
    return Plot("search-curves", caption, figure)


def _curve(run: Run) -> pd.Series | None:
    """The smoothed loss by forward passes, None where the search has no steps."""
    if run.status != "finished":
        return None
    steps = [step for step in run.curve if step.get("loss") is not None and step.get("forwards") is not None]
    if len(steps) < 2:
        return None
    curve = pd.Series([step["loss"] for step in steps], index=[step["forwards"] for step in steps], dtype=float)
    return curve.rolling(max(1, round(SMOOTHED * len(curve))), min_periods=1).mean()
