"""The benchmark at the size of published models runs on a tiny shape, and goes on where it was stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = {"forward", "policy_gradient", "second_order", "level", "tuning"}


def scale(out: Path, *more: str) -> str:
    command = [sys.executable, ROOT / "benchmarks" / "scale.py", "--models", "tiny", "--device", "cpu", "--out", out]
    done = subprocess.run(
        [*command, "--sequences", "8", "--length", "16", *more],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    return done.stdout


def test_it_measures_each_part_once(tmp_path: Path) -> None:
    first = scale(tmp_path)
    assert "is there" not in first
    files = {file.stem: file.read_bytes() for file in (tmp_path / "tiny").iterdir()}
    assert set(files) == PARTS
    (tmp_path / "tiny" / "level.json").unlink()

    second = scale(tmp_path)
    assert second.count("is there") == len(PARTS) - 1
    again = {file.stem: file.read_bytes() for file in (tmp_path / "tiny").iterdir()}
    assert set(again) == PARTS
    assert all(again[part] == files[part] for part in PARTS - {"level"})

    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert set(summary) == {"settings", "versions", "git", "models"}
    assert {"device", "card", "sequences", "length", "limit"} == set(summary["settings"])
    own = summary["models"]["tiny"]
    assert own["failed"] == {}
    assert set(own["parts"]) == PARTS
    for part in own["parts"].values():
        assert set(part) == {"settings", "seconds", "peak_memory_mb", "result"}
        assert part["peak_memory_mb"] > 0
    results = {name: part["result"] for name, part in own["parts"].items()}
    assert set(results["forward"]["seconds"]) == {"dense", "masked", "sliced_0.5", "sliced_0.8"}
    for step in results["policy_gradient"].values():
        assert step["masks"] == 2
        assert 0 < step["outside_seconds"] < step["synchronised_step_seconds"]
    assert results["second_order"]["measured_layers"] == results["second_order"]["layers"] == 4
    assert not results["second_order"]["scaled"]
    assert {row["layer"] for row in results["level"]["measured"]} == {0, 2, 3}
    assert results["tuning"]["all_layers"]["seconds"] > 0
    assert own["paper"]["steps"] == 15_000
    assert set(own["ours_forward"]["minutes"]) == {"150", str(results["level"]["measurements_at_most"])}
