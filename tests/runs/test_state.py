"""State files: whole or not used."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policyprune.runs.state import StateFile, once

OWN = {"config": "abc"}


def written(folder: Path, count: int) -> StateFile:
    """A file that was written `count` times, with the number of the time in it."""
    file = StateFile(folder / "search.state", OWN)
    for number in range(count):
        file.write({"step": number, "s": torch.full((3,), float(number)), "none": None, "list": [1, "a"]})
    return file


def step_of(content: dict[str, Any] | None) -> int | None:
    return None if content is None else content["step"]


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    content = written(tmp_path, 2).read()
    assert content is not None
    assert content["s"].tolist() == [1.0, 1.0, 1.0]
    assert (content["none"], content["list"]) == (None, [1, "a"])


def test_nothing_there_is_no_state(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert StateFile(tmp_path / "search.state", OWN).read() is None
    assert not caplog.records


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(data=st.data())
def test_any_damage_is_noticed_and_the_state_before_is_used(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    file = written(tmp_path_factory.mktemp("state"), 3)
    whole = file.path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        file.path.write_bytes(whole[:at])
    else:
        file.path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << data.draw(st.integers(0, 7))]) + whole[at + 1 :])
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert step_of(file.read()) == 1
    assert len(caplog.records) == 1
    assert "is not used" in caplog.text
    file.write({"step": 7})
    file.path.write_bytes(b"")
    assert step_of(file.read()) == 1, "the damaged state took the place of the good one"


def test_both_damaged_is_no_state(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = written(tmp_path, 2)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert file.read() is None
    assert len(caplog.records) == 2


def test_the_state_of_another_config_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written(tmp_path, 1)
    with caplog.at_level(logging.WARNING):
        assert StateFile(tmp_path / "search.state", {"config": "other"}).read() is None
    assert "is of another run" in caplog.text


def test_an_unusable_state_gives_way_to_the_one_before(tmp_path: Path) -> None:
    assert step_of(written(tmp_path, 3).read(lambda content: content["step"] < 2)) == 1


def test_a_process_that_dies_between_the_two_renames_leaves_the_state_before(tmp_path: Path) -> None:
    file = written(tmp_path, 3)
    file.path.replace(tmp_path / "search.state.old")
    assert step_of(file.read()) == 2


def test_a_full_disk_leaves_both_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, 2)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("policyprune.storage.files.os.fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*search\.state"):
        file.write({"step": 2})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_result_is_computed_once(tmp_path: Path) -> None:
    calls = []

    def compute() -> dict[str, Any]:
        calls.append(1)
        return {"metric": torch.tensor([0.1, 0.7], dtype=torch.float64)}

    first, second = (once(StateFile(tmp_path / "importance.state", OWN), compute) for _ in range(2))
    assert len(calls) == 1
    assert torch.equal(first["metric"], second["metric"])
    assert second["metric"].dtype == torch.float64
