"""Tables and plots of many runs, from their records alone. Imports no torch."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from policyprune.config.output_folders import output_folder
from policyprune.errors import UsageError

NEEDED = ("pandas", "matplotlib", "jinja2")


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
    paths = _written(folders, table or folders[0].resolve().name, target, wandb)
    print(paths[0].read_text(encoding="utf-8"))
    print("\n".join(str(path) for path in paths if path.parent == paths[0].parent))


def report_folder(folder: Path, table: str) -> list[Path]:
    """Report on all runs below `folder` into `folder`/report, the Markdown first in what is returned.

    `table` is the title, and where `sweeps/reference` has a file of that name, its published values are compared. The
    files also go to W&B where the runs went there. UsageError where a package is missing or no record is found.
    """
    return _written([folder], table, folder / "report", wandb=False)


def _written(folders: Sequence[Path], table: str, output: Path, wandb: bool) -> list[Path]:
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"report: {str(folder)!r} is no folder")
    output_folder("report: --output", str(output))
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(f"report: {', '.join(missing)} is not installed, pip install 'policyprune[report]' brings it")
    from policyprune.report.files import write_report

    return write_report(folders, table, output, wandb)
