"""Tables and plots of many runs, from their records alone. Imports no torch."""

import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from policyprune.config.output_folders import output_folder
from policyprune.errors import UsageError
from policyprune.storage.files import write_whole

if TYPE_CHECKING:
    from policyprune.report.plots.style import Plot

NEEDED = ("pandas", "matplotlib", "jinja2")
FIGURES = "figures"


def report(folders: Sequence[Path], table: str | None, output: str | None, wandb: bool) -> None:
    """Report on the runs below some folders: print the tables in Markdown, and the paths of what was written.

    The table is named like the first folder, and is written into `report/` there, unless they are given.
    """
    from policyprune.report.reference import table_names

    if not folders:
        raise UsageError("report: name one or more folders with runs, as in policyprune report outputs")
    if table is not None and table not in table_names():
        raise UsageError(f"report: --table {table!r} is not one of {', '.join(table_names())}")
    if output is not None:
        output_folder("report: --output", output)
    target = folders[0] / "report" if output is None else Path(output)
    paths = write_report(folders, table or folders[0].resolve().name, target, wandb)
    print(paths[0].read_text(encoding="utf-8"))
    print("\n".join(str(path) for path in paths if path.parent.name != FIGURES))


def report_folder(folder: Path, table: str) -> list[Path]:
    """Report on all runs below `folder` into `folder`/report, the Markdown first in what is returned.

    `table` is the title, and where `sweeps/reference` has a file of that name, its published values are compared. The
    files also go to W&B where the runs went there. UsageError where a package is missing or no record is found.
    """
    return write_report([folder], table, folder / "report")


def write_report(folders: Sequence[Path], table: str, output: Path, wandb: bool = False) -> list[Path]:
    """Write report.md, .tex, .csv, .html and figures/*.svg, *.png into `output`, each whole or not at all."""
    _check(folders, output)
    from policyprune.report.contents import make_report
    from policyprune.report.reference import read_reference
    from policyprune.report.runs import find_runs
    from policyprune.report.writers import csv, latex, markdown, page
    from policyprune.tracking.wandb import track_report

    runs = find_runs(folders)
    if not runs:
        raise UsageError(f"report: no record.json below {', '.join(repr(str(folder)) for folder in folders)}")
    contents = make_report(table, runs, read_reference(table))
    plots = [plot for section in contents.sections for plot in section.plots]
    drawings = {plot.name: _drawn(plot, "svg") for plot in plots}
    texts = {
        "report.md": markdown(contents, FIGURES),
        "report.tex": latex(contents),
        "report.csv": csv(contents),
        "report.html": page(contents, drawings),
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


def _check(folders: Sequence[Path], output: Path) -> None:
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"report: {str(folder)!r} is no folder")
    output_folder("report: --output", str(output))
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(f"report: {', '.join(missing)} is not installed, pip install 'policyprune[report]' brings it")


def _drawn(plot: "Plot", form: str) -> bytes:
    from policyprune.report.plots.style import styled

    buffer = io.BytesIO()
    with styled():
        plot.figure.savefig(buffer, format=form, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()
