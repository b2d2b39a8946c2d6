"""What each layer keeps, as a heat map."""

from collections import defaultdict
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from policyprune.report.measures import Line
from policyprune.report.plots.style import FAINT, WIDTH, Plot
from policyprune.report.runs import Run

KINDS = {
    "attention": "attention heads",
    "ffn": "FFN channels",
    "attention_block": "attention blocks",
    "ffn_block": "FFN blocks",
    "layer": "layers",
}
ROW = 0.17  # inches


def layer_keep_rates(runs: Sequence[tuple[Run, list[Line]]]) -> Plot | None:
    """A panel per kind of unit; a row per method, in groups of one keep rate; the mean over seeds."""
    rates: dict[tuple[float, str], list[pd.DataFrame]] = defaultdict(list)
    for run, lines in runs:
        if run.status == "finished" and run.keep is not None and run.keep_rates:
            rates[run.keep, lines[0].method].append(pd.DataFrame(run.keep_rates))
    if not rates:
        return None
    means = {
        key: pd.concat(frames).pivot_table(index="kind", columns="layer", values="rate", aggfunc="mean")
        for key, frames in rates.items()
    }
    kinds = list(dict.fromkeys(kind for mean in means.values() for kind in mean.index))
    keeps = sorted({keep for keep, _ in means}, reverse=True)
    methods = list(dict.fromkeys(method for _, method in means))  # the same order at every keep rate
    groups = {keep: [method for method in methods if (keep, method) in means] for keep in keeps}
    rows = sum(map(len, groups.values()))
    height = max(1.5, ROW * rows + 0.3 * len(keeps) + 0.7)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    heights = [len(methods) for methods in groups.values()]
    grid = figure.subplots(len(keeps), len(kinds), squeeze=False, sharex=True, height_ratios=heights)
    for keep, line in zip(keeps, grid, strict=True):
        for kind, own in zip(kinds, line, strict=True):
            table = pd.DataFrame(
                [means[keep, method].loc[kind] for method in groups[keep] if kind in means[keep, method].index]
            )
            names = [method for method in groups[keep] if kind in means[keep, method].index]
            if table.empty:
                own.set_axis_off()
                continue
            own.grid(visible=False)
            extent = (table.columns[0] - 0.5, table.columns[-1] + 0.5, len(table) - 0.5, -0.5)
            image = own.imshow(
                table, vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="none", extent=extent
            )
            own.set_yticks(range(len(names)), names if kind == kinds[0] else [])
            own.tick_params(length=0)
            own.set_title(f"{KINDS.get(kind, kind)}, keep {keep:g}")
            own.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
            own.hlines([row + 0.5 for row in range(len(names) - 1)], *extent[:2], color="white", linewidth=0.8)
            own.spines[:].set_color(FAINT)
            own.spines[:].set_visible(True)
    for own in grid[-1]:
        own.set_xlabel("layer")
    bar = figure.colorbar(image, ax=grid, shrink=min(1.0, 2.0 / figure.get_figheight()), aspect=18, pad=0.02)
    bar.set_label("kept units")
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    bar.outline.set_visible(False)  # type: ignore[operator]
    return Plot("keep-rates", "What each layer keeps, mean over seeds. Dark: pruned; bright: kept.", figure)
