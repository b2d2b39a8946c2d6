"""What the record and the files of a run's folder say of it."""

from pathlib import Path

import pytest
import torch

from harness import validated
from policyprune.config.schema import Config
from policyprune.report.runs import find_runs
from policyprune.runs.folder import finished_before, recorded
from policyprune.runs.record import Record, Status, forget, status_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config() -> Config:
    return validated("optimizer=one_shot")


def finished_with_files(config: Config, folder: Path) -> None:
    with recorded(config, folder, CPU):
        for name in ("mask.safetensors", "plan.json", "curve.jsonl", "checkpoint/model.safetensors"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"a whole file")


DAMAGES = {
    "is missing": lambda path: path.unlink(),
    "has 6 of 12 bytes": lambda path: path.write_bytes(b"a whol"),
    "is damaged (checksum)": lambda path: path.write_bytes(b"a whole lie!"),
}


@pytest.mark.parametrize("name", ["mask.safetensors", "plan.json", "curve.jsonl", "checkpoint/model.safetensors"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_finished_run_that_lost_a_file_is_not_taken_for_a_whole_one(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    finished_with_files(config, tmp_path)
    assert finished_before(config, tmp_path) is not None
    assert status_of(config, tmp_path, "hydra.run.dir").state == "finished"
    DAMAGES[damage](tmp_path / name)
    if name.startswith("checkpoint") and "checksum" in damage:
        return  # weights are too large to be read for this
    repaired: list[Record] = []
    status = status_of(config, tmp_path, "hydra.run.dir")
    record = finished_before(config, tmp_path, repaired.append)
    assert caplog.records[0].message == f"{tmp_path}: the run is finished, but {name} {damage}"
    if name == "curve.jsonl":  # only pictures need it
        assert (record is not None, repaired, status.state) == (True, [], "finished")
        return
    assert status == Status("incomplete", f"{name} {damage}")
    if name == "mask.safetensors":
        assert (record, repaired) == (None, []), "without the mask there is nothing to repair by"
    else:
        assert repaired == [record]


def test_a_report_leaves_out_a_curve_that_was_changed(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with recorded(config, tmp_path, CPU):
        (tmp_path / "curve.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    assert find_runs([tmp_path])[0].curve == [{"step": 1, "loss": 2.5}]
    (tmp_path / "curve.jsonl").write_text('{"step": 1, "loss": 2.6}\n')
    assert find_runs([tmp_path])[0].curve == []
    assert "curve.jsonl is damaged (checksum), it is left out" in caplog.text


def test_forgetting_leaves_everything_else(tmp_path: Path) -> None:
    for name in ("search.state", "search.state.old", "importance.state"):
        (tmp_path / name).write_bytes(b"state")
    (tmp_path / "curve.jsonl").write_text("{}\n")
    forget(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["curve.jsonl"]
