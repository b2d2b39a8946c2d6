"""Tables of quality, cost, size and speed."""

import csv
import io
from pathlib import Path

from policyprune.report.files import csv as as_csv
from policyprune.report.table import Cell
from records import Measured, perplexities, write_run
from reports import cell_of, report_on, row_of, table_of


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
        "seconds, recovery": "",
        "search, forward passes": "8",
        "calibration, sequences": "64 / 48",
        "calibration, tokens": "1,024 / 768",
        "calibration, backward": "importance",
        "recovery, training tokens": "",
        "memory, peak, MB": "100",
    }
    assert cell_of(cost, "calibration, sequences", "0.8", "flap").value == "64 / 64"  # what its config allowed
    size = table_of(report, "size")
    assert cell_of(size, "MACs of the blocks, G, 128 tokens", "", "dense").value == "2.00"
    assert cell_of(size, "MACs of the blocks, G, 128 tokens", "0.8", "ours").value == "1.50"


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
