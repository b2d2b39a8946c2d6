"""Published values: their files, and beside what was measured."""

from pathlib import Path

import pytest

from policyprune.errors import UsageError
from policyprune.report import reference
from policyprune.report.reference import COLUMNS, read_reference, table_names
from records import perplexities, write_run
from reports import SOURCE, cell_of, published, report_on, table_of


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
