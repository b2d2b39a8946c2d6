"""All files of a report, each written whole or not at all."""

import io
from collections.abc import Sequence
from pathlib import Path

from policyprune.errors import UsageError
from policyprune.report.contents import make_report
from policyprune.report.plots.style import Plot, styled
from policyprune.report.reference import read_reference
from policyprune.report.runs import find_runs
from policyprune.report.writers import csv, latex, markdown, page
from policyprune.storage.files import write_whole
from policyprune.tracking.wandb import track_report

FIGURES = "figures"


def write_report(folders: Sequence[Path], table: str, output: Path, wandb: bool = False) -> list[Path]:
    """Write report.md, .tex, .csv, .html and figures/*.svg, *.png into `output`; their paths, the Markdown first.

    The files also go to W&B where the runs went there, or where `wandb` wishes it. UsageError where no record is found.
    """
    runs = find_runs(folders)
    if not runs:
        raise UsageError(f"report: no record.json below {', '.join(repr(str(folder)) for folder in folders)}")
    report = make_report(table, runs, read_reference(table))
    plots = [plot for section in report.sections for plot in section.plots]
    drawings = {plot.name: _drawn(plot, "svg") for plot in plots}
    texts = {
        "report.md": markdown(report, FIGURES),
        "report.tex": latex(report),
        "report.csv": csv(report),
        "report.html": page(report, drawings),
    }
    (output / FIGURES if plots else output).mkdir(parents=True, exist_ok=True)
    files = {output / name: text.encode() for name, text in texts.items()}
    for plot in plots:
        files[output / FIGURES / f"{plot.name}.svg"] = drawings[plot.name]
        files[output / FIGURES / f"{plot.name}.png"] = _drawn(plot, "png")
    for path, content in files.items():
        write_whole(path, content)
    track_report([run.config for run in runs], wandb, table, output, list(files))
    return list(files)


def _drawn(plot: Plot, form: str) -> bytes:
    buffer = io.BytesIO()
    with styled():
        plot.figure.savefig(buffer, format=form, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()
