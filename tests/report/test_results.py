"""How the runs of a row ended, and what sets it apart from others."""

from pathlib import Path

import pytest

from policyprune.report.files import latex, markdown
from policyprune.report.table import Cell
from records import Measured, perplexities, write_run
from reports import cell_of, report_on, row_of, table_of


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
    reasons = {(row.names[0], row.cells[2].state): row.cells[3].value for row in table_of(report, "runs without").rows}
    assert reasons == {
        ("ours", "failed"): "RunError: it broke",
        ("flap", "interrupted"): "Interrupted: by SIGTERM",
        ("flap", "running"): "",
        ("kwon", "missing"): "",
        ("damaged", "unreadable"): reasons["damaged", "unreadable"],
        ("older", "unreadable"): "its schema is 0, not 1",
        ("odd", "unreadable"): "its status is 'happy'",
        ("list", "unreadable"): "it is no mapping",
    }
    for text in (markdown(report, "figures"), latex(report)):
        for word in ("failed", "interrupted", "running", "missing", "unreadable", "RunError: it broke"):
            assert word in text


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
