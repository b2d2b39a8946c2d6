"""The picture of the README shows the numbers of the table of results."""

import csv
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_the_picture_is_what_the_script_draws(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "benchmarks" / "quality_plot.py", tmp_path], check=True)
    assert (tmp_path / "quality.svg").read_text(encoding="utf-8") == (DOCS / "quality.svg").read_text(encoding="utf-8")


def test_its_numbers_stand_in_the_results() -> None:
    with (DOCS / "quality.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    said = set(re.findall(r"[\d.,]*\d", (DOCS / "results.md").read_text(encoding="utf-8")))
    assert {row["perplexity"] for row in rows} | {row["dense"] for row in rows} <= said
    assert len(rows) == 4 * len({row["method"] for row in rows})
