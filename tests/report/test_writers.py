"""A report as Markdown, LaTeX and CSV."""

import csv
import io
import itertools
import math
import re
import statistics
from pathlib import Path

from policyprune.report.files import csv as as_csv
from policyprune.report.files import latex, latex_escaped, markdown
from policyprune.report.table import Cell, letter, without_empty_columns
from records import Measured, perplexities, write_run
from reports import cell_of, published, report_on, table_of


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


def test_a_column_in_which_no_row_has_anything_is_left_out(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, "ours", seed=seed)
    table = table_of(report_on(tmp_path), "cost")
    shown = without_empty_columns(table)
    assert (table.stub, shown.stub) == (("keep", "method", "tuning", "recovery"), ("keep", "method"))
    assert "seconds, tuning" in table.columns
    assert shown.columns == [name for name in table.columns if cell_of(table, name, "0.8", "ours") != Cell()]
    assert [cell for row in shown.rows for cell in row.cells] == [
        cell for row in table.rows for cell in row.cells if cell != Cell()
    ]


def test_letters_go_on_after_z() -> None:
    assert [letter(number) for number in (0, 25, 26, 27, 52)] == ["a", "z", "aa", "ab", "ba"]
