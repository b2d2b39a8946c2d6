"""The verb `report`: what it writes, refuses and tracks."""

import base64
import errno
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from harness import clean_environment
from policyprune import cli
from policyprune.commands import report as reporting
from policyprune.commands import verbs
from policyprune.errors import UsageError
from records import Measured, perplexities, write_run

PLOTS = {"quality-macs", "zero-shot", "search-curves", "keep-rates", "latency-macs"}


def full_results(pruned: float) -> list[Measured]:
    """Something for every plot."""
    return [
        *perplexities(pruned),
        *((subject, "acc", value, {"task": "piqa"}) for subject, value in (("dense", 0.7), ("pruned", 0.6))),
        *(
            (subject, "block_macs", value, {"sequence_length": 128})
            for subject, value in (("dense", 2e9), ("pruned", 1e9))
        ),
        ("dense", "latency", 10.0, {"batch_size": 2, "length": 16}),
        ("pruned", "latency_ratio", 0.6, {"batch_size": 2, "length": 16, "repeats": 5, "spread": 0.2}),
    ]


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Runs with nothing to draw."""
    write_run(tmp_path / "sweep", "ours")
    return tmp_path / "sweep"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with all there is to draw, and one that failed."""
    folder = tmp_path_factory.mktemp("runs") / "sweep"
    rates = [{"layer": n, "kind": kind, "rate": 0.5} for n in range(3) for kind in ("attention", "ffn")]
    for seed in (0, 1):
        for keep in (0.8, 0.5):
            losses = [5.0 - 0.1 * step + seed for step in range(20)]
            write_run(folder, "ours", keep, seed, full_results(20 / keep + seed), losses=losses, keep_rates=rates)
    write_run(folder, "<script>alert(1)</script>", 0.8, results=full_results(90.0))
    write_run(folder, "flap", 0.8, status="failed", error="RunError: it broke")
    return folder


@pytest.fixture(scope="module")
def written(runs: Path) -> list[Path]:
    """The paths of their report."""
    return reporting.report_folder(runs, "smoke")


class Resources(HTMLParser):
    """Everything that a page loads or points at, and the tags that are in it."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_all_files_are_written_whole(runs: Path, written: list[Path]) -> None:
    paths = written
    assert paths[0] == runs / "report" / "report.md"
    names = {path.relative_to(runs / "report").as_posix() for path in paths}
    drawn = {f"figures/{plot}.{form}" for plot in PLOTS for form in ("svg", "png")}
    assert names == {"report.md", "report.tex", "report.csv", "report.html"} | drawn
    assert {path for path in (runs / "report").rglob("*") if path.is_file()} == set(paths)
    for path in paths:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert min(image.size) > 300
                assert len(image.convert("RGB").getcolors(2**24) or ()) > 20, "an empty frame"
        elif path.suffix == ".svg":
            assert len(list(ElementTree.parse(path).iter())) > 50
    again = {path: path.read_bytes() for path in paths}
    assert reporting.report_folder(runs, "smoke") == paths
    assert all(path.read_bytes() == content for path, content in again.items()), "the same records, another report"


def test_the_page_needs_nothing_beside_it(written: list[Path]) -> None:
    page = written[0].with_suffix(".html").read_text(encoding="utf-8")
    seen = Resources()
    seen.feed(page)
    assert all(link.startswith(("#", "data:image/svg+xml;base64,")) for link in seen.links)
    assert "@import" not in page
    assert "url(" not in page
    assert "http:" not in page
    assert "https:" not in page
    assert "script" not in seen.tags, "a name from a record was taken as HTML"
    assert "alert(1)" in page
    images = [link for link in seen.links if link.startswith("data:")]
    assert len(images) == len(PLOTS)
    for image in images:
        svg = base64.b64decode(image.partition("base64,")[2])
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert not re.search(rb'(href|src)="(?!#|data:)', svg)
    assert "it broke" in page


def test_a_plot_without_data_is_left_out(few: Path) -> None:
    paths = reporting.report_folder(few, "smoke")
    assert {path.name for path in paths} == {"report.md", "report.tex", "report.csv", "report.html"}
    assert not (few / "report" / "figures").exists()


def test_only_failures_are_a_report_too(tmp_path: Path) -> None:
    write_run(tmp_path, "ours", status="failed", error="RunError: it broke")
    text = reporting.report_folder(tmp_path, "smoke")[0].read_text(encoding="utf-8")
    assert "1 run: 1 failed" in text
    assert "RunError: it broke" in text


def test_the_verb_prints_the_table_and_the_paths(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "elsewhere"
    assert verbs.report([str(few), str(few), "--output", str(output), "--table", "paper/pg_heads_channels"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("# paper/pg\\_heads\\_channels\n\n1 run: 1 finished.")
    assert str(output / "report.html") in shown
    assert not (few / "report").exists()
    assert "LLM-Pruner" in shown, "the published values of the table"


def test_nothing_heavy_is_imported(few: Path) -> None:
    script = (
        "import json, sys\n"
        f"sys.argv = ['policyprune', 'report', {str(few)!r}]\n"
        "from policyprune.cli import main\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert ended.code == 0\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=clean_environment(), capture_output=True, text=True, check=True
    )
    modules = set(json.loads(done.stdout.splitlines()[-1]))
    assert "matplotlib" in modules
    assert not modules & {"torch", "transformers", "datasets", "wandb", "lm_eval", "matplotlib.pyplot"}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "report: name one or more folders with runs"),
        (["{empty}/no"], "report: '{empty}/no' is no folder"),
        (["{empty}"], "report: no record.json below '{empty}'"),
        (["{empty}", "--table", "paper/pg"], "report: --table 'paper/pg' is not one of paper/gpruner_glue, "),
        (["{empty}", "--tabel", "x"], "--tabel: no flag of policyprune report, it has --table, --output, --wandb"),
        (["{runs}", "--output", "{file}"], "report: --output: '{file}' is a file, name a folder"),
    ],
)
def test_refusals_are_one_line(arguments: list[str], line: str, few: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    places = {"empty": tmp_path / "empty", "file": tmp_path / "file", "runs": few}
    with pytest.raises(UsageError) as caught:
        verbs.report([argument.format(**places) for argument in arguments])
    assert str(caught.value).startswith(line.format(**places))
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_one_line(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "find_spec", lambda name: None if name == "matplotlib" else object())
    with pytest.raises(UsageError, match="report: matplotlib is not installed, pip install 'policyprune"):
        reporting.report_folder(few, "smoke")


@pytest.mark.parametrize("tracked_by", ["the runs", "the flag"])
def test_wandb_offline_takes_the_report(
    tracked_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    monkeypatch.delenv("WANDB_DIR", raising=False)
    settings = {
        "name": "wandb",
        "project": "mine",
        "entity": None,
        "mode": "offline",
        "group": "a-sweep",
        "job_type": "prune",
        "tags": [],
    }
    config = {"tracker": settings} if tracked_by == "the runs" else {}
    sweep = tmp_path / "sweep"
    write_run(sweep, "ours", results=full_results(20.0), config=config)
    if tracked_by == "the runs":
        reporting.report_folder(sweep, "paper/table")
    else:
        verbs.report([str(sweep), "--wandb"])
    assert not [record for record in caplog.records if record.name.startswith("policyprune.tracking")], caplog.text
    sys.modules["wandb"].teardown()  # as at the end of a process
    files = list((sweep / "report" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 1
    content = files[0].read_bytes()
    assert b"report/cells" in content
    assert b"report/quality-macs" in content
    assert (b"a-sweep" in content) == (tracked_by == "the runs")


def test_a_tracker_that_fails_is_a_warning(
    few: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert verbs.report([str(few), "--wandb"]) == 0
    assert [record.name for record in caplog.records] == ["policyprune.tracking"]
    assert "the report was not tracked" in caplog.text


def test_a_report_that_cannot_be_written_names_the_path(
    few: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("policyprune.report.files.write_whole", refused)
    assert cli.perform("report", [str(few)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("policyprune: ")
    assert error.count("\n") == 1
    assert "report.md: No space left on device" in error
