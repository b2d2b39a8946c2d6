"""The sections of a report."""

import re
from pathlib import Path

from records import write_run
from reports import report_on


def test_models_and_tasks_have_sections_of_their_own(tmp_path: Path) -> None:
    for model in ("one", "two"):
        for task in ("glue/sst2", "squad_v1"):
            write_run(tmp_path, "ours", model=model, task=task)
    titles = [section.title for section in report_on(tmp_path).sections]
    assert titles == ["one, glue/sst2", "one, squad_v1", "two, glue/sst2", "two, squad_v1"]


def test_plots_of_foreign_records_stay_in_their_folder(tmp_path: Path) -> None:
    rates = [{"layer": 0, "kind": "ffn", "rate": 0.5}]
    for model in ("../../../evil", "a/b", "a:b", "x" * 300):
        write_run(tmp_path, "ours", model=model, keep_rates=rates, folder=str(len(list(tmp_path.iterdir()))))
    names = [plot.name for section in report_on(tmp_path).sections for plot in section.plots]
    assert len(set(names)) == len(names) == 4
    assert all(re.fullmatch(r"[\w.-]{1,200}", name) for name in names)
