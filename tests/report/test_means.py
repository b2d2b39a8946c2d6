"""Means over seeds, and which of them are ahead."""

import math
import re
import statistics
from pathlib import Path

import pytest

from policyprune.report.files import csv as as_csv
from policyprune.report.files import latex, markdown
from policyprune.report.table import Cell
from records import Measured, perplexities, write_run
from reports import bold_rows, cell_of, report_on, row_of, table_of


def test_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    values = [20.0, 23.0, 27.5]
    for seed, value in enumerate(values):
        write_run(tmp_path, "ours", seed=seed, results=perplexities(value))
    write_run(tmp_path, "flap", results=perplexities(30.0))
    table = table_of(report_on(tmp_path), "perplexity")
    cell = cell_of(table, "128 tokens ↓, keep 0.8", "ours")
    assert cell == Cell(f"{statistics.mean(values):.2f}", spread=f"{statistics.stdev(values):.2f}", best=True)
    assert row_of(table, "ours").names == ("ours", "", "", "3")
    assert cell_of(table, "128 tokens ↓, keep 0.8", "flap") == Cell("30.00")
    assert row_of(table, "dense").cells == (Cell("10.00"),)


def test_two_runs_of_one_seed_are_one_seed(tmp_path: Path) -> None:
    for value in (20.0, 22.0):
        write_run(tmp_path, "ours", results=perplexities(value))
    write_run(tmp_path, "ours", seed=1, results=perplexities(25.0))
    row = row_of(table_of(report_on(tmp_path), "perplexity"), "ours")
    assert row.names[3] == "2"
    assert row.cells[0].value == "23.00"


def test_a_value_that_is_not_finite_is_no_number(tmp_path: Path) -> None:
    sizes: list[Measured] = [("pruned", "parameters", None, {})]
    write_run(tmp_path, "ours", results=[*perplexities(None), *sizes])
    for seed in (0, 1):
        write_run(tmp_path, "flap", seed=seed, results=perplexities(30.0 + seed))
        write_run(tmp_path, "kwon", seed=seed, results=perplexities(40.0 + seed))
    for value in (math.nan, math.inf):  # as others may write it
        write_run(tmp_path, "foreign", 0.8, 0 if value == math.inf else 1, results=perplexities(value))
    report = report_on(tmp_path)
    table = table_of(report, "perplexity")
    assert row_of(table, "ours").cells == (Cell(state="not finite"),)
    assert row_of(table, "foreign").cells == (Cell(state="not finite"),)
    assert row_of(table, "flap").cells[0].best
    assert cell_of(table_of(report, "size"), "parameters, M", "0.8", "ours") == Cell(state="not finite")
    for text in (markdown(report, "figures"), latex(report), as_csv(report)):
        assert "not finite" in text
        assert not {"nan", "inf"} & set(re.findall(r"\w+", text.lower()))


def test_two_rows_of_a_run_are_not_averaged(tmp_path: Path) -> None:
    results: list[Measured] = [
        ("pruned", "acc", share, {"task": "piqa", "limit": n}) for n, share in ((1, 1.0), (9, 0.5))
    ]
    write_run(tmp_path, "ours", results=results)
    table = table_of(report_on(tmp_path), "zero-shot")
    assert [cell.value for cell in row_of(table, "ours").cells] == ["1.0000", "0.5000"]
    assert table.columns == ["acc ↑, piqa, limit 1", "acc ↑, piqa, limit 9"]


def test_best_knows_the_direction(tmp_path: Path) -> None:
    for method, accuracy, entropy in (("ours", 0.9, 0.5), ("kwon", 0.8, 0.3)):
        results: list[Measured] = [
            ("dense", "accuracy", 0.99, {"split": "validation"}),
            ("pruned", "accuracy", accuracy, {"split": "validation"}),
            ("dense", "cross_entropy", 0.1, {"split": "validation"}),
            ("pruned", "cross_entropy", entropy, {"split": "validation"}),
            ("pruned", "novelty", accuracy, {}),
        ]
        for seed in (0, 1):
            write_run(tmp_path, method, seed=seed, results=results, stderr=0.01)
    report = report_on(tmp_path)
    bold = {
        table.title.split(" of ")[0]: [row.names[0] for row in table.rows if any(cell.best for cell in row.cells)]
        for section in report.sections
        for table in section.tables
    }
    assert bold["accuracy"] == ["ours"]
    assert bold["cross entropy"] == ["kwon"]
    assert table_of(report, "accuracy").columns == ["validation ↑, keep 0.8"]


def test_what_ten_questions_do_not_tell_apart_is_all_bold(tmp_path: Path) -> None:
    for method, share in (("ours", 0.6), ("flap", 0.5), ("magnitude", 0.1)):
        results: list[Measured] = [("pruned", "acc", share, {"task": "piqa", "limit": 10})]
        for seed in (0, 1):
            write_run(tmp_path, method, seed=seed, results=results, stderr=math.sqrt(share * (1 - share) / 9))
    assert bold_rows(tmp_path, "zero-shot") == {"ours", "flap"}


def test_seeds_tell_rows_apart_or_do_not(tmp_path: Path) -> None:
    for seed, shift in enumerate((-1.0, 0.0, 1.0)):
        write_run(tmp_path, "ours", seed=seed, results=perplexities(20.0 + shift))
        write_run(tmp_path, "close", seed=seed, results=perplexities(20.7 + shift))
        write_run(tmp_path, "behind", seed=seed, results=perplexities(21.0 + shift))
    write_run(tmp_path, "alone", results=perplexities(21.0))  # one seed: taken to err like the best
    write_run(tmp_path, "ruined", results=perplexities(9000.0))
    # the deviation is 1, so the standard error of a mean of three 0.58, of a difference 0.82
    assert bold_rows(tmp_path) == {"ours", "close"}


def test_perplexities_over_seeds_are_told_apart_by_the_seeds(tmp_path: Path) -> None:
    """Not by the windows of the text, which all rows share."""
    for seed in (0, 1):
        write_run(tmp_path, "ours", seed=seed, results=perplexities(20.0 + 0.1 * seed), stderr=3.0)
        write_run(tmp_path, "flap", seed=seed, results=perplexities(21.0 + 0.1 * seed), stderr=3.0)
    assert bold_rows(tmp_path) == {"ours"}
    for seed in (0, 1):
        results: list[Measured] = [("pruned", "accuracy", 0.5, {"split": "validation"})]
        write_run(tmp_path, "ours", seed=seed, results=results, stderr=0.1)
        results = [("pruned", "accuracy", 0.4, {"split": "validation"})]
        write_run(tmp_path, "flap", seed=seed, results=results, stderr=0.1)
        worst: list[Measured] = [("pruned", "accuracy", 0.1, {"split": "validation"})]
        write_run(tmp_path, "magnitude", seed=seed, results=worst, stderr=0.1)
    assert bold_rows(tmp_path, "accuracy") == {"ours", "flap"}, "the questions err, whatever the seeds do"


def test_what_would_be_all_bold_is_not(tmp_path: Path) -> None:
    for method, accuracy in (("ours", 0.5), ("flap", 0.4)):
        for seed in (0, 1):
            results: list[Measured] = [("pruned", "accuracy", accuracy, {"split": "validation"})]
            write_run(tmp_path, method, seed=seed, results=results, stderr=0.1)
    assert bold_rows(tmp_path, "accuracy") == set()


@pytest.mark.parametrize("stderr", [None, 0.01])
def test_one_seed_tells_nothing_and_the_report_says_so(stderr: float | None, tmp_path: Path) -> None:
    write_run(tmp_path, "ours", results=perplexities(20.0), stderr=stderr)
    for seed in (0, 1):
        write_run(tmp_path, "flap", seed=seed, results=perplexities(40.0 + seed), stderr=stderr)
    assert bold_rows(tmp_path) == set()
    assert any("Nothing is bold where the best has one seed" in text for text in report_on(tmp_path).how_to_read)
