"""What the plots draw, read back from the figures."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from policyprune.report.contents import make_report
from policyprune.report.lines import DENSE, Line
from policyprune.report.plots import COLORS, looks
from policyprune.report.runs import find_runs
from records import Measured, perplexities, write_run


def plots_of(folder: Path) -> dict[str, Figure]:
    """The figures of a report by name."""
    report = make_report("a title", find_runs([folder]), [])
    return {plot.name: plot.figure for section in report.sections for plot in section.plots}


def sized(pruned: float | None, macs: float, ratio: float | None, spread: float | None = 0.02) -> list[Measured]:
    """Perplexity, multiply-accumulates (100 of the dense model) and share of its latency."""
    shape = {"batch_size": 1, "length": 16, "repeats": 5}
    return [
        *perplexities(pruned),
        ("dense", "block_macs", 100.0, {}),
        ("pruned", "block_macs", macs, {}),
        ("dense", "latency", 100.0, {**shape, "spread": 0.5}),
        ("pruned", "latency_ratio", ratio, {**shape, "spread": spread}),
    ]


def line_of(figure: Figure, label: str) -> tuple[np.ndarray, np.ndarray]:
    """The points of the one line with a label in the first panel."""
    axes = figure.axes[0]
    handles, labels = axes.get_legend_handles_labels()
    drawn = handles[labels.index(label)]
    line = drawn[0] if isinstance(drawn, tuple) else drawn
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def test_curves_are_means_with_a_band_over_seeds(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, "ours", seed=seed, losses=[10.0 - step + 2 * seed for step in range(8)])
    write_run(tmp_path, "alone", losses=[5.0] * 8)
    write_run(tmp_path, "broken", status="failed", losses=[1.0] * 8)
    figure = plots_of(tmp_path)["search-curves"]
    forwards, losses = line_of(figure, "ours")
    assert (forwards[0], forwards[-1]) == (2, 16)
    assert np.allclose(losses, np.interp(forwards, [2, 16], [11.0, 4.0]))
    bands = [area for area in figure.axes[0].collections if isinstance(area, PolyCollection)]
    assert len(bands) == 1, "one method has more than one seed"
    heights = bands[0].get_paths()[0].vertices[:, 1]
    assert (heights.max(), heights.min()) == (12.0, 3.0)
    assert "broken" not in figure.axes[0].get_legend_handles_labels()[1]


def test_layers_show_the_mean_kept_share(tmp_path: Path) -> None:
    for seed, rate in ((0, 0.2), (1, 0.4)):
        rates = [{"layer": layer, "kind": "ffn", "rate": rate + 0.1 * layer} for layer in range(4)]
        write_run(tmp_path, "ours", seed=seed, keep_rates=rates)
    figure = plots_of(tmp_path)["keep-rates"]
    shown = figure.axes[0].images[0].get_array()
    assert shown is not None
    assert np.allclose(shown, [[0.3, 0.4, 0.5, 0.6]])
    assert figure.axes[0].get_title(loc="left") == "FFN channels, keep 0.8"


def test_quality_and_latency_stand_over_the_share_of_macs(tmp_path: Path) -> None:
    for keep, macs in ((0.8, 75.0), (0.5, 50.0)):
        write_run(tmp_path, "ours", keep, results=sized(16 / keep, macs, (macs + 10) / 100))
    figures = plots_of(tmp_path)
    shares, values = line_of(figures["quality-macs"], "ours")
    assert shares.tolist() == [0.5, 0.75]
    assert values.tolist() == [32.0, 20.0]
    shares, values = line_of(figures["latency-macs"], "ours")
    assert shares.tolist() == [0.5, 0.75]
    assert np.allclose(values, [0.6, 0.85])
    assert "noisy" not in figures["latency-macs"].axes[0].get_legend_handles_labels()[1]


def test_noisy_latencies_have_a_ring_and_what_is_not_finite_no_point(tmp_path: Path) -> None:
    for method, ratio, spread in (("ours", 0.6, 0.02), ("flap", 0.7, 0.3), ("kwon", 0.8, None), ("gone", None, 0.01)):
        write_run(tmp_path, method, 0.5, results=sized(None, 50.0, ratio, spread))
    figures = plots_of(tmp_path)
    axes = figures["latency-macs"].axes[0]
    rings = [ring for ring in axes.lines if ring.get_label() == "noisy"]
    assert [ring.get_ydata()[0] for ring in rings] == [0.7, 0.8]  # type: ignore[index]
    assert "gone" not in axes.get_legend_handles_labels()[1]
    half = {
        bars.get_label(): np.ptp(bars.lines[2][0].get_segments()[0][:, 1]) / 2
        for bars in axes.containers
        if bars.lines[2]
    }
    assert half == {"ours": pytest.approx(0.02 * 0.6 / 2), "flap": pytest.approx(0.3 * 0.7 / 2)}
    assert "quality-macs" in figures


@pytest.mark.parametrize("ruined", [False, True])
def test_perplexities_beyond_all_use_do_not_stretch_the_axis(ruined: bool, tmp_path: Path) -> None:
    write_run(tmp_path, "ours", 0.5, results=sized(40.0, 50.0, 0.6))
    write_run(tmp_path, "magnitude", 0.5, results=sized(1e5 if ruined else 200.0, 50.0, 0.6))
    report = make_report("a title", find_runs([tmp_path]), [])
    plot = next(plot for section in report.sections for plot in section.plots if plot.name == "quality-macs")
    low, high = plot.figure.axes[0].get_ylim()
    assert low < 10  # of the dense model
    assert (high == 300) == ruined
    assert ("cut off" in plot.caption) == ruined


def test_methods_stand_in_one_order_at_every_keep_rate(tmp_path: Path) -> None:
    for keep, methods in ((0.8, ("flap", "ours")), (0.5, ("ours", "flap"))):
        for method in methods:
            write_run(tmp_path, method, keep, keep_rates=[{"layer": 0, "kind": "ffn", "rate": keep}])
    panels = plots_of(tmp_path)["keep-rates"].axes[:2]
    assert [[label.get_text() for label in panel.get_yticklabels()] for panel in panels] == [["flap", "ours"]] * 2


def test_bars_have_standard_errors_and_the_dense_line(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path,
        "ours",
        results=[(who, "acc", value, {"task": "piqa"}) for who, value in (("dense", 0.7), ("pruned", 0.6))],
    )
    path = folder / "record.json"
    path.write_text(path.read_text().replace('"stderr": null', '"stderr": 0.05'))
    axes = plots_of(tmp_path)["zero-shot"].axes[0]
    bars = [bar for bar in axes.patches if bar.get_height() > 0]  # type: ignore[attr-defined]
    assert [bar.get_height() for bar in bars] == [0.6]  # type: ignore[attr-defined]
    segments = [segment for drawn in axes.collections for segment in drawn.get_segments()]  # type: ignore[attr-defined]
    spans = {(round(float(y[0]), 3), round(float(y[1]), 3)) for _, y in (segment.T for segment in segments)}
    assert spans == {(0.55, 0.65), (0.7, 0.7)}


@pytest.mark.parametrize("count", [3, len(COLORS) + 2])
def test_looks_tell_the_rows_apart(count: int) -> None:
    lines = [Line(model="m", task="t", method=DENSE)]
    for number in range(count):
        lines += [Line(model="m", task="t", method=f"method {number}", tuning=tuning) for tuning in ("", "cg2")]
    look = looks(lines)
    assert len(look) == 2 * count
    assert len(set(look.values())) == 2 * count
    for number in range(count):
        before, after = (
            look[Line(model="m", task="t", method=f"method {number}", tuning=tuning)] for tuning in ("", "cg2")
        )
        assert before.color == after.color
        assert before.hollow
        assert not after.hollow
    assert len({each.color for each in look.values()}) == min(count, len(COLORS))
