"""The curve file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from policyprune.runs.state import EMPTY, Curve, read_curve


def lines(path: Path) -> list[dict[str, Any]]:
    """Each line of the file as JSON."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_step_is_a_line_of_plain_numbers(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    with Curve(path, every=1) as curve:
        for step in range(3):
            written = curve.add({"step": step, "loss": torch.tensor(step / 2)})
            assert written == [{"step": step, "loss": step / 2}]
            assert lines(path)[-1] == {"step": step, "loss": step / 2}
    assert len(lines(path)) == 3


def test_steps_are_held_back_and_written_together(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    with Curve(path, every=3) as curve:
        assert curve.add({"step": 0}) == []
        assert curve.add({"step": 1}) == []
        assert lines(path) == []
        assert curve.add({"step": 2}) == [{"step": 0}, {"step": 1}, {"step": 2}]
        assert len(lines(path)) == 3
        assert curve.add({"step": 3}) == []
    assert [line["step"] for line in lines(path)] == [0, 1, 2, 3]


def test_a_search_that_fails_keeps_what_was_held_back(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"

    def fail() -> None:
        with Curve(path, every=10) as curve:
            curve.add({"step": 0})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert lines(path) == [{"step": 0}]


def test_a_loss_that_is_no_number_is_valid_json(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    with Curve(path, every=1) as curve:
        curve.add({"step": 0, "loss": torch.tensor(float("nan"))})
        curve.add({"step": 1, "loss": float("inf")})

    def strict(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    assert [json.loads(line, parse_constant=strict)["loss"] for line in path.read_text().splitlines()] == [None, None]


def test_going_on_keeps_the_first_lines_and_nothing_after_them(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    with Curve(path, every=1) as curve:
        curve.add({"step": 1, "loss": float("nan")})
        written = curve.sync()
        curve.add({"step": 2, "loss": 0.5})
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    kept = read_curve(path, written)
    assert kept is not None
    assert [row["step"] for row in kept] == [1]
    assert kept[0]["loss"] != kept[0]["loss"]
    with Curve(path, every=1, keep=written[0]) as curve:
        curve.add({"step": 2, "loss": 0.5})
    assert [line["step"] for line in lines(path)] == [1, 2]


def test_a_curve_that_lost_lines_is_distinctions(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    assert read_curve(tmp_path / "nowhere", EMPTY) is None
    with Curve(path, every=1) as curve:
        curve.add({"step": 1, "loss": 2.5})
        written = curve.sync()
    assert read_curve(path, written) == [{"step": 1, "loss": 2.5}]
    assert read_curve(path, (written[0] - 1, written[1])) is None
    path.write_text(path.read_text().replace("2.5", "2.6"))
    assert read_curve(path, written) is None, "another digit"
    path.write_text("")
    assert read_curve(path, written) is None
    assert read_curve(path, EMPTY) == []
