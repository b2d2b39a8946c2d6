"""Tables of a report, from records written by hand."""

import csv
import io
import itertools
import math
import re
import statistics
from pathlib import Path

import pytest

from policyprune.errors import UsageError
from policyprune.report import reference
from policyprune.report.contents import Report, make_report
from policyprune.report.lines import Line
from policyprune.report.reference import COLUMNS, Published, read_reference, table_names
from policyprune.report.runs import find_runs
from policyprune.report.table import Cell, Row, Table, letter, without_empty_columns
from policyprune.report.writers import csv as as_csv
from policyprune.report.writers import latex, latex_escaped, markdown
from records import Measured, perplexities, write_run

SOURCE = "Somebody, somewhere"


def report_on(folder: Path, published: list[Published] | None = None) -> Report:
    """The report on all runs below a folder."""
    return make_report("a title", find_runs([folder]), published or [])


def table_of(report: Report, title: str) -> Table:
    """The one table whose title begins so."""
    found = [table for section in report.sections for table in section.tables if table.title.startswith(title)]
    assert len(found) == 1, [table.title for section in report.sections for table in section.tables]
    return found[0]


def row_of(table: Table, *names: str) -> Row:
    """The one row whose names begin so."""
    found = [row for row in table.rows if row.names[: len(names)] == names]
    assert len(found) == 1, [row.names for row in table.rows]
    return found[0]


def cell_of(table: Table, column: str, *names: str) -> Cell:
    """The cell in a column, by the column's full title."""
    return row_of(table, *names).cells[table.columns.index(column)]


def test_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    values = [20.0, 23.0, 27.5]
    for seed, value in enumerate(values):
        write_run(tmp_path, "ours", seed=seed, results=perplexities(value))
    write_run(tmp_path, "flap", results=perplexities(30.0))
    table = table_of(report_on(tmp_path), "perplexity")
    cell = cell_of(table, "128 tokens ↓, keep 0.8", "ours")
    assert cell == Cell(f"{statistics.mean(values):.2f}", spread=f"{statistics.stdev(values):.2f}", best=True)
    assert row_of(table, "ours").names == ("ours", "", "3")
    assert cell_of(table, "128 tokens ↓, keep 0.8", "flap") == Cell("30.00")
    assert row_of(table, "dense").cells == (Cell("10.00"),)


def test_two_runs_of_one_seed_are_one_seed(tmp_path: Path) -> None:
    for value in (20.0, 22.0):
        write_run(tmp_path, "ours", results=perplexities(value))
    write_run(tmp_path, "ours", seed=1, results=perplexities(25.0))
    row = row_of(table_of(report_on(tmp_path), "perplexity"), "ours")
    assert row.names[2] == "2"
    assert row.cells[0].value == "23.00"


def test_no_run_is_dropped(tmp_path: Path) -> None:
    write_run(tmp_path, "ours", 0.8, 0, perplexities(20.0))
    write_run(tmp_path, "ours", 0.8, 1, perplexities(22.0))
    write_run(tmp_path, "ours", 0.5, 0, perplexities(50.0))
    write_run(tmp_path, "ours", 0.5, 1, status="failed", error="RunError: it broke")
    write_run(tmp_path, "flap", 0.8, status="interrupted", error="Interrupted: by SIGTERM")
    write_run(tmp_path, "flap", 0.5, status="running")
    write_run(tmp_path, "kwon", 0.8, results=[])
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "record.json").write_text('{"schema": 1, "status"')
    others = {"older": '{"schema": 0}', "odd": '{"schema": 1, "status": "happy"}', "list": "[]"}
    for name, text in others.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_text(text)
    report = report_on(tmp_path)
    assert report.summary == "11 runs: 4 finished, 1 failed, 1 interrupted, 1 running, 4 unreadable"
    table = table_of(report, "perplexity")
    high, low = "128 tokens ↓, keep 0.8", "128 tokens ↓, keep 0.5"
    assert cell_of(table, low, "ours") == Cell("50.00", remark="n = 1, 1 failed")
    assert cell_of(table, high, "flap").state == "interrupted"
    assert cell_of(table, low, "flap").state == "running"
    assert cell_of(table, high, "kwon").state == "not measured"
    assert cell_of(table, low, "kwon").state == "missing"
    told = {(row.names[0], row.cells[2].state): row.cells[3].value for row in table_of(report, "runs without").rows}
    assert told == {
        ("ours", "failed"): "RunError: it broke",
        ("flap", "interrupted"): "Interrupted: by SIGTERM",
        ("flap", "running"): "",
        ("kwon", "missing"): "",
        ("damaged", "unreadable"): told["damaged", "unreadable"],
        ("older", "unreadable"): "its schema is 0, not 1",
        ("odd", "unreadable"): "its status is 'happy'",
        ("list", "unreadable"): "it is no mapping",
    }
    for text in (markdown(report, "figures"), latex(report)):
        for word in ("failed", "interrupted", "running", "missing", "unreadable", "RunError: it broke"):
            assert word in text


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


def bold_rows(folder: Path, title: str = "perplexity") -> set[str]:
    """The methods with a bold cell."""
    return {row.names[0] for row in table_of(report_on(folder), title).rows if any(cell.best for cell in row.cells)}


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
        other: list[Measured] = [("pruned", "accuracy", 0.5, {"split": "validation"})]
        write_run(tmp_path, "ours", seed=seed, results=other, stderr=0.1)
        other = [("pruned", "accuracy", 0.4, {"split": "validation"})]
        write_run(tmp_path, "flap", seed=seed, results=other, stderr=0.1)
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


def test_warnings_of_the_records_stand_below_their_rows(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, "ours", seed=seed, warnings=["better than the dense model"])
    write_run(tmp_path, "flap")
    table = table_of(report_on(tmp_path), "perplexity")
    marks = row_of(table, "ours").marks
    assert marks
    note = "warning: better than the dense model (keep 0.8, seed 0; keep 0.8, seed 1)"
    assert f"{marks}: {note}" in table.notes
    assert not row_of(table, "flap").marks
    assert note in latex(report_on(tmp_path))


def test_latencies_are_shares_of_the_dense_model_with_their_noise(tmp_path: Path) -> None:
    shape = {"batch_size": 8, "length": 128, "repeats": 5}
    results: list[Measured] = [
        *perplexities(20.0),
        ("pruned", "latency_ratio", 0.8, {**shape, "spread": 0.02}),
        ("dense", "latency", 3556.0, {**shape, "spread": 0.4}),
        ("pruned", "latency", 2800.0, {**shape, "spread": 0.4}),
    ]
    noisy: list[Measured] = [("pruned", "latency_ratio", 0.9, {**shape, "spread": 0.25})]
    once: list[Measured] = [("pruned", "latency_ratio", 0.7, {**shape, "repeats": 1, "spread": None})]
    write_run(tmp_path, "ours", results=results)
    write_run(tmp_path, "flap", results=noisy)
    write_run(tmp_path, "kwon", results=once)
    table = table_of(report_on(tmp_path), "size")
    share = "latency, share of the dense model's, 128 tokens x 8"
    assert cell_of(table, share, "0.8", "ours") == Cell("0.80")
    assert cell_of(table, share, "0.8", "flap") == Cell("0.90", remark="noisy, spread 25 %")
    assert cell_of(table, share, "0.8", "kwon") == Cell("0.70", remark="one round")
    assert cell_of(table, "latency, ms, 128 tokens x 8", "", "dense") == Cell("3,556.00", remark="noisy, spread 40 %")
    assert "1 or 5 rounds" in table.caption
    row = next(
        row
        for row in csv.DictReader(io.StringIO(as_csv(report_on(tmp_path))))
        if (row["method"], row["metric"]) == ("flap", "latency_ratio")
    )
    assert row["spread"] == "0.25"


def test_two_rows_of_a_run_are_not_averaged(tmp_path: Path) -> None:
    results: list[Measured] = [
        ("pruned", "acc", share, {"task": "piqa", "limit": n}) for n, share in ((1, 1.0), (9, 0.5))
    ]
    write_run(tmp_path, "ours", results=results)
    table = table_of(report_on(tmp_path), "zero-shot")
    assert [cell.value for cell in row_of(table, "ours").cells] == ["1.0000", "0.5000"]
    assert table.columns == ["acc ↑, piqa, limit 1", "acc ↑, piqa, limit 9"]


def test_a_tuned_run_fills_two_rows_and_the_checkpoint_none(tmp_path: Path) -> None:
    stated = {"length": 128}
    results: list[Measured] = [
        *perplexities(20.0),
        ("tuned", "perplexity", 18.0, stated),
        ("reloaded", "perplexity", 18.0, stated),
        ("one_shot", "perplexity", 60.0, {**stated, "scope": "per_layer"}),
    ]
    write_run(tmp_path, "ours", results=results, tuning="cg2")
    table = table_of(report_on(tmp_path), "perplexity")
    shown = {row.names[:2]: row.cells[0].value for row in table.rows}
    assert shown == {
        ("dense", ""): "10.00",
        ("ours", ""): "20.00",
        ("ours", "cg2"): "18.00",
        ("wanda_sp alone, per layer", ""): "60.00",
    }


def test_rows_without_a_method_are_named_after_their_parts(tmp_path: Path) -> None:
    write_run(tmp_path, None)
    write_run(tmp_path, None, config={"optimizer": {"name": "one_shot"}})
    names = [row.names[0] for row in table_of(report_on(tmp_path), "perplexity").rows]
    assert names == ["dense", "policy_gradient from wanda_sp", "wanda_sp"]


def test_an_ablation_has_a_row_per_value(tmp_path: Path) -> None:
    for seed in (0, 1):
        for masks in (2, 4):
            results = perplexities(20.0 + masks + seed)
            write_run(tmp_path, "ours", seed=seed, results=results, config={"optimizer.masks": masks})
        for count in (64, 128):
            write_run(tmp_path, "flap", seed=seed, config={"task.calibration": {"count": count, "seed": seed}})
    table = table_of(report_on(tmp_path), "perplexity")
    assert row_of(table, "ours (masks=2)").cells[0].value == "22.50"
    assert row_of(table, "ours (masks=4)").cells[0].value == "24.50"
    assert {row.names[0] for row in table.rows if "flap" in row.names[0]} == {
        "flap (calibration.count=64)",
        "flap (calibration.count=128)",
    }


def test_an_evaluated_checkpoint_says_the_same_at_every_keep_rate(tmp_path: Path) -> None:
    results: list[Measured] = [("evaluated", "perplexity", 15.0, {"length": 128})]
    nothing: dict[str, object] = {"budget": {}, "optimizer": {}, "importance": {}, "tuning": {}}
    folder = write_run(tmp_path / "evaluated", None, results=results, config=nothing)
    alone = table_of(report_on(tmp_path), "perplexity")
    assert [(row.names[0], row.cells) for row in alone.rows] == [
        (f"evaluated, {folder.name}", (Cell("15.00"),)),
    ]
    for keep in (0.8, 0.5):
        write_run(tmp_path / "pruned", "ours", keep)
    beside = table_of(report_on(tmp_path), "perplexity")
    assert row_of(beside, f"evaluated, {folder.name}").cells == (Cell("15.00"), Cell("15.00"))
    assert row_of(beside, "ours").cells[0].value == "20.00"


def test_models_and_tasks_have_sections_of_their_own(tmp_path: Path) -> None:
    for model in ("one", "two"):
        for task in ("glue/sst2", "squad_v1"):
            write_run(tmp_path, "ours", model=model, task=task)
    titles = [section.title for section in report_on(tmp_path).sections]
    assert titles == ["one, glue/sst2", "one, squad_v1", "two, glue/sst2", "two, squad_v1"]


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"results": perplexities(21.0, dtype="bfloat16")}, "dtype bfloat16 at keep 0.5, elsewhere float32"),
        ({"protocol": {"tokenizer": "def"}}, "tokenizer hash def at keep 0.5, elsewhere abc"),
        ({"protocol": {"source": "other"}}, "source other at keep 0.5, elsewhere a text"),
        (
            {"calibration": {"search": {"sequences": 512, "tokens": 8192, "backpropagation": False}}},
            "calibration sequences 512 at keep 0.5, elsewhere 64",
        ),
    ],
)
def test_differences_of_protocol_are_flagged(changes: dict[str, object], note: str, tmp_path: Path) -> None:
    for method in ("flap", "kwon", "ours"):
        write_run(tmp_path, method, 0.8)
        write_run(tmp_path, method, 0.5, **({} if method != "ours" else changes))  # type: ignore[arg-type]
    table = table_of(report_on(tmp_path), "perplexity")
    marked = row_of(table, "ours").marks
    assert marked
    assert f"{marked.split(',')[-1]}: {note}" in table.notes
    assert not row_of(table, "flap").marks
    assert not row_of(table, "kwon").marks


def test_equal_protocols_have_no_notes(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, "ours", seed=seed)
    assert table_of(report_on(tmp_path), "perplexity").notes == ()


def test_columns_may_differ_by_design(tmp_path: Path) -> None:
    """Fewer windows where they are longer, another version of another task."""
    results: list[Measured] = [
        *perplexities(20.0, windows=64),
        *perplexities(18.0, length=1024, windows=8),
        ("pruned", "acc", 0.5, {"task": "piqa", "version": 1.0}),
        ("pruned", "acc", 0.4, {"task": "boolq", "version": 2.0}),
    ]
    for method in ("flap", "ours"):
        write_run(tmp_path, method, results=results)
    assert [table.notes for section in report_on(tmp_path).sections for table in section.tables if table.notes] == []


def test_zero_shot_takes_the_normalised_accuracy_where_there_is_one(tmp_path: Path) -> None:
    results: list[Measured] = [
        (subject, metric, value, {"task": task, "split": "validation"})
        for subject, shift in (("dense", 0.0), ("pruned", 0.1))
        for task, metric, value in (
            ("piqa", "acc", 0.7 - shift),
            ("piqa", "acc_norm", 0.8 - shift),
            ("boolq", "acc", 0.6 - shift),
        )
    ]
    results.append(("pruned", "zero_shot_mean", 0.6, {"metrics": {"piqa": "acc_norm", "boolq": "acc"}}))
    write_run(tmp_path, "ours", results=results)
    report = report_on(tmp_path)
    table = table_of(report, "zero-shot accuracy")
    assert table.columns == ["acc_norm ↑, piqa", "acc ↑, boolq"]
    assert [cell.value for cell in row_of(table, "ours").cells] == ["0.7000", "0.5000"]
    assert cell_of(table_of(report, "zero-shot mean"), "zero-shot mean ↑, keep 0.8", "ours").value == "0.6000"


def test_costs_and_sizes(tmp_path: Path) -> None:
    sizes: list[Measured] = [
        ("dense", "block_macs", 2e9, {"sequence_length": 128}),
        ("pruned", "block_macs", 1.5e9, {"sequence_length": 128}),
    ]
    stated = {
        "importance": {"sequences": 64, "tokens": 1024, "backpropagation": True},
        "search": {"sequences": 48, "tokens": 768, "backpropagation": False},
    }
    write_run(tmp_path, "ours", results=[*perplexities(20.0), *sizes], calibration=stated)
    write_run(tmp_path, "flap")
    report = report_on(tmp_path)
    cost = table_of(report, "cost")
    shown = dict(zip(cost.columns, (cell.value for cell in row_of(cost, "0.8", "ours").cells), strict=True))
    assert shown == {
        "seconds, importance": "",
        "seconds, search": "4.0",
        "seconds, tuning": "",
        "search, forward passes": "8",
        "calibration, sequences": "64 / 48",
        "calibration, tokens": "1,024 / 768",
        "calibration, backward": "importance",
        "memory, peak, MB": "100",
    }
    assert cell_of(cost, "calibration, sequences", "0.8", "flap").value == "64 / 64"  # what its config allowed
    size = table_of(report, "size")
    assert cell_of(size, "MACs of the blocks, G, 128 tokens", "", "dense").value == "2.00"
    assert cell_of(size, "MACs of the blocks, G, 128 tokens", "0.8", "ours").value == "1.50"


def published(value: float | None, method: str = "dense", **protocol: str) -> Published:
    """A published perplexity of the tiny model."""
    stated = {"length": "128", **protocol}
    return Published(
        line=Line("tiny", "text", method, ""),
        keep=0.8,
        metric="perplexity",
        protocol=stated,
        value=value,
        source=SOURCE,
    )


def test_published_values_and_differences(tmp_path: Path) -> None:
    write_run(tmp_path, "ours", 0.8, results=perplexities(20.0, dense=12.5))
    write_run(tmp_path, "ours", 0.5, results=perplexities(40.0, dense=12.5))
    known = [
        published(12.62, bos="text"),
        published(18.5, "ours"),
        published(None, "flap"),
        published(5.68, "dense", length="2048"),
    ]
    report = report_on(tmp_path, known)
    table = table_of(report, "perplexity")
    assert cell_of(table, "128 tokens ↓, keep 0.8", "ours").remark == "published 18.50, +1.50"
    assert cell_of(table, "128 tokens ↓, keep 0.5", "ours").remark == ""
    assert cell_of(table, "128 tokens ↓, keep 0.8", "dense").remark == "published 12.62, -0.12"
    assert cell_of(table, "128 tokens ↓, keep 0.5", "dense").remark == "", "said once"
    rows = table_of(report, "published values").rows
    shown = [(row.names[2], row.cells[1].value, row.cells[2].value or row.cells[2].state) for row in rows]
    assert shown == [("dense", "12.62", "12.50"), ("ours", "18.50", "20.00"), ("dense", "5.68", "not run")]
    assert rows[0].cells[3].remark == "bos none here"
    assert rows[0].cells[4].value == SOURCE


def test_the_csv_has_full_precision_and_every_state(tmp_path: Path) -> None:
    values = [20.0 / 3, 23.0 / 7]
    for seed, value in enumerate(values):
        write_run(tmp_path, "ours", seed=seed, results=perplexities(value))
    write_run(tmp_path, "flap", status="failed", error="RunError: it broke")
    known = [published(6.0, "ours")]
    rows = list(csv.DictReader(io.StringIO(as_csv(report_on(tmp_path, known)))))
    ours = next(row for row in rows if row["method"] == "ours")
    assert math.isclose(float(ours["mean"]), statistics.mean(values))
    assert math.isclose(float(ours["deviation"]), statistics.stdev(values))
    assert math.isclose(float(ours["difference"]), statistics.mean(values) - 6.0)
    assert (ours["n"], ours["protocol"], ours["state"]) == ("2", "length=128", "measured")
    flap = next(row for row in rows if row["method"] == "flap")
    assert (flap["state"], flap["mean"]) == ("failed", "")


def test_latex_escapes_and_is_booktabs(tmp_path: Path) -> None:
    assert latex_escaped("50% of_a & b#1 $x$ {y} ~ ^ \\") == (
        r"50\% of\_a \& b\#1 \$x\$ \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )
    for method, share in (("our_100%", 0.9), ("b&c", 0.8)):
        rows: list[Measured] = [("pruned", "accuracy", share, {"split": "validation"})]
        for seed in (0, 1):
            write_run(tmp_path, method, 0.8, seed, results=rows, stderr=0.01)
    text = latex(report_on(tmp_path))
    assert r"our\_100\% & 2 & \textbf{0.9000} {\scriptsize $\pm$ 0.0000} \\" in text
    assert r"b\&c & 2 & 0.8000 {\scriptsize $\pm$ 0.0000} \\" in text
    for command in (r"\toprule", r"\midrule", r"\bottomrule", r"\cmidrule(lr){3-3}", r"\multicolumn{1}{c}{"):
        assert command in text
    for block in text.split(r"\begin{tabular}{")[1:]:
        columns, body = block.split("}", 1)
        rows = body.split(r"\end{tabular}")[0].splitlines()
        widths = {row.replace(r"\&", "").count("&") for row in rows if row.endswith(r"\\") and "multicolumn" not in row}
        assert widths == {len(columns) - 1}


def test_markdown_escapes(tmp_path: Path) -> None:
    write_run(tmp_path, "a|b_c*", results=perplexities(20.0))
    text = markdown(report_on(tmp_path), "figures")
    assert r"| a\|b\_c\* " in text


EVIL = "<img src=x onerror=alert(1)>&lt;|`[x](javascript:y)\x1b]0;z\x07\u202e\r\n# t"


def test_nothing_of_a_foreign_record_is_markup_or_steers_a_terminal(tmp_path: Path) -> None:
    names = {"model": EVIL, "task": f"task{EVIL}"}
    results: list[Measured] = [
        *perplexities(20.0),
        ("pruned", "acc", 0.5, {"task": EVIL}),
        ("pruned", "accuracy", 0.5, {"split": EVIL}),
        ("pruned", f"metric{EVIL}", 0.5, {}),
    ]
    write_run(tmp_path / "a", "ours", results=results, warnings=[EVIL], folder="one", **names)
    write_run(tmp_path / "b", EVIL, status="failed", error=f"E: {EVIL}", folder="two", **names)
    report = report_on(tmp_path)
    for text in (markdown(report, "figures"), latex(report)):
        assert all(letter.isprintable() or letter == "\n" for letter in text)
        assert "onerror" in text, "nothing was shown at all"
    for line in markdown(report, "figures").splitlines():
        assert set(re.findall(r"<[^>]*>", line)) <= {"<sup>", "</sup>"}
        assert "[x](" not in line
        assert "&lt;|" not in line
        assert not line.startswith("# t")
    tables = [line for line in markdown(report, "figures").splitlines() if line.startswith("|")]
    for line, after in itertools.pairwise(tables):
        if set(after) <= set("|-:"):
            assert len(re.findall(r"(?<!\\)\|", line)) == after.count("|")


def test_plots_of_foreign_records_stay_in_their_folder(tmp_path: Path) -> None:
    rates = [{"layer": 0, "kind": "ffn", "rate": 0.5}]
    for model in ("../../../evil", "a/b", "a:b", "x" * 300):
        write_run(tmp_path, "ours", model=model, keep_rates=rates, folder=str(len(list(tmp_path.iterdir()))))
    names = [plot.name for section in report_on(tmp_path).sections for plot in section.plots]
    assert len(set(names)) == len(names) == 4
    assert all(re.fullmatch(r"[\w.-]{1,200}", name) for name in names)


def test_letters_go_on_after_z() -> None:
    assert [letter(number) for number in (0, 25, 26, 27, 52)] == ["a", "z", "aa", "ab", "ba"]


@pytest.mark.parametrize("table", table_names())
def test_files_of_published_values(table: str) -> None:
    cells = read_reference(table)
    assert cells
    keys = [(cell.line, cell.keep, cell.metric, str(cell.protocol)) for cell in cells]
    assert len(set(keys)) == len(keys)
    for cell in cells:
        assert 0 < cell.keep <= 1
        assert cell.protocol
        assert all((cell.line.model, cell.line.task, cell.line.method, cell.metric))
        assert bool(cell.source) == (cell.value is not None), "a value has a source, and an empty cell has none"
        assert cell.value is None or cell.value > 0


def test_known_published_values_are_there() -> None:
    known = {
        (cell.line.model, cell.protocol["length"]): cell.value
        for cell in read_reference("paper/pg_heads_channels")
        if cell.line.method == "dense" and cell.value is not None
    }
    assert known["llama_7b", "128"] == 12.62
    assert known["llama_7b", "2048"] == 5.68


def test_a_column_in_which_no_row_has_anything_is_left_out(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, "ours", seed=seed)
    table = table_of(report_on(tmp_path), "cost")
    shown = without_empty_columns(table)
    assert (table.stub, shown.stub) == (("keep", "method", "tuning"), ("keep", "method"))
    assert "seconds, tuning" in table.columns
    assert shown.columns == [name for name in table.columns if cell_of(table, name, "0.8", "ours") != Cell()]
    assert [cell for row in shown.rows for cell in row.cells] == [
        cell for row in table.rows for cell in row.cells if cell != Cell()
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("tiny,text,dense,,1,perplexity,length=128,abc,x", "reference bad, line 2: could not convert"),
        ("tiny,text,dense,,,perplexity,length=128,1.0,x", "reference bad, line 2: could not convert"),
        ("tiny,text,dense,,1,perplexity,length,1.0,x", "reference bad, line 2: "),
    ],
)
def test_a_bad_line_of_published_values_is_named(
    line: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "reference_dir", lambda: tmp_path)
    (tmp_path / "bad.csv").write_text(f"{','.join(COLUMNS)}\n{line}\n")
    with pytest.raises(UsageError, match=complaint):
        read_reference("bad")


def test_a_bad_header_of_published_values_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "reference_dir", lambda: tmp_path)
    (tmp_path / "bad.csv").write_text("model,value\nx,1\n")
    with pytest.raises(UsageError, match="reference bad: the columns are"):
        read_reference("bad")
