"""What the rows of a table are called."""

from pathlib import Path

from policyprune.report.table import Cell
from records import Measured, perplexities, write_run
from reports import cell_of, report_on, row_of, table_of


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


def test_a_recovered_run_fills_a_row_of_its_own(tmp_path: Path) -> None:
    stated = {"length": 128}
    results: list[Measured] = [*perplexities(20.0), ("tuned", "perplexity", 18.0, stated)]
    results.append(("recovered", "perplexity", 14.0, stated))
    write_run(tmp_path, "ours", results=perplexities(20.0), keep=0.6)
    stages = [{"name": "search", "seconds": 3.0}, {"name": "recovery", "seconds": 60.0}]
    config = {"recovery": {"name": "distill", "steps": 8}}
    write_run(tmp_path, "ours", results=results, tuning="cg2", config=config, stages=stages, recovery={"tokens": 65536})
    report = report_on(tmp_path)
    rows = table_of(report, "perplexity").rows
    shown = {row.names[:3]: row.cells[0].value for row in rows}
    assert shown == {
        ("dense", "", ""): "10.00",
        ("ours", "", ""): "20.00",
        ("ours", "cg2", ""): "18.00",
        ("ours", "cg2", "distill"): "14.00",
    }
    costs = table_of(report, "cost")
    names = ("seconds, recovery", "recovery, training tokens")
    assert [cell_of(costs, name, "0.8", "ours", "cg2", "distill").value for name in names] == ["60.0", "65,536"]
    assert [cell_of(costs, name, "0.8", "ours", "cg2", "").value for name in names] == ["", ""]


def test_a_recovery_of_a_recovered_run_has_a_row_of_its_own(tmp_path: Path) -> None:
    """With the very options of the run, and over seeds, whose weights are others."""
    stated = {"length": 128}
    distill = {"recovery": {"name": "distill", "seconds": 600}}
    nothing: dict[str, object] = {"budget": {}, "optimizer": {}, "importance": {}, "tuning": {}}
    before = {"keep": 0.8, "pruned_by": "ours", "tuned": "cg2", "recovered": "distill", "teacher": "dense"}
    for seed in (0, 1):
        results: list[Measured] = [*perplexities(20.0), ("recovered", "perplexity", 14.0 + seed, stated)]
        write_run(tmp_path, "ours", results=results, tuning="cg2", config=distill, seed=seed)
        calibration = {"calibration": {"count": 1, "length": 16, "seed": seed}, "name": "text"}
        config = {**nothing, **before, **distill, "task": calibration, "state": f"w{seed}"}
        again: list[Measured] = [("recovered", "perplexity", 12.0 + seed, stated)]
        write_run(tmp_path, None, results=again, config=config, seed=seed)
    shown = {row.names[:3]: row.cells[0].value for row in table_of(report_on(tmp_path), "perplexity").rows}
    assert shown == {
        ("dense", "", ""): "10.00",
        ("ours", "", ""): "20.00",
        ("ours", "cg2", ""): "",
        ("ours", "cg2", "distill"): "14.50",
        ("ours", "cg2", "distill + distill"): "12.50",
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
