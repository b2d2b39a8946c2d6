"""The record on disk."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

import policyprune
from policyprune.config import targets
from policyprune.errors import UsageError
from policyprune.models.modelling_file import brings_only_ours
from policyprune.report.runs import find_runs
from policyprune.runs.record import Record, read_record
from policyprune.storage.record_file import RECORD_FILE, UnreadableError


def some_record() -> Record:
    """A record with something in every field."""
    record = Record(config={"seed": 1, "task": {"name": "text"}}, config_hash="abc", hardware={"device": "cpu"})
    record.started = "2026-01-01T00:00:00+00:00"
    record.protocol = {"corpus": "text", "calibration": {"count": 8}}
    record.stages.append({"name": "load", "seconds": 1.5, "peak_memory_mb": 10.0, "peak_gpu_memory_mb": None})
    record.search = {"forwards": 4}
    record.keep_rates.append({"layer": 0, "kind": "ffn", "kept": 3, "count": 4, "rate": 0.75})
    record.add("dense", "perplexity", 12.5, "", {"length": 32})
    record.add("pruned", "parameters", 1000, "", {})
    record.add("pruned", "acc", 0.5, "", {"task": "piqa"}, stderr=0.125)
    record.calibration = {"importance": {"sequences": 8, "tokens": 64, "backpropagation": False}}
    return record


def test_round_trip(tmp_path: Path) -> None:
    record = some_record()
    record.write(tmp_path)
    assert read_record(tmp_path) == record


def test_only_the_record_is_left_behind(tmp_path: Path) -> None:
    some_record().write(tmp_path)
    some_record().write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [RECORD_FILE]


def test_a_write_that_fails_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = some_record()
    record.write(tmp_path)
    before = (tmp_path / RECORD_FILE).read_bytes()

    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    record.status = "finished"
    with pytest.raises(OSError, match="no space"):
        record.write(tmp_path)
    assert (tmp_path / RECORD_FILE).read_bytes() == before


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_becomes_null(tmp_path: Path, value: float) -> None:
    record = some_record()
    record.add("pruned", "perplexity", value, "", {"nested": [1.0, value]})
    record.write(tmp_path)

    def strict(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    row = json.loads((tmp_path / RECORD_FILE).read_text(), parse_constant=strict)["results"][-1]
    assert row["value"] is None
    assert row["protocol"]["nested"] == [1.0, None]


def test_what_is_not_finite_is_said_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    record = some_record()
    for value in (math.nan, math.inf, None):
        record.add("one_shot", "perplexity", value, "", {"length": 32, "scope": "global"}, stderr=1.0)
    assert [(row.value, row.stderr) for row in record.results[-3:]] == [(None, None)] * 3
    assert record.warnings == ["not finite: perplexity of the one shot model (length 32, scope global)"]
    assert [entry.getMessage() for entry in caplog.records] == record.warnings


@pytest.mark.parametrize(
    "content", ["", '{"schema": 1, "config"', '{"schema": 0}', "{}", "[]", "null", "7", "[" * 9999]
)
def test_what_cannot_be_read_says_why_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / RECORD_FILE).write_text(content)
    with pytest.raises(UnreadableError, match=r"record\.json' cannot be read: [^\n]+$"):
        read_record(tmp_path)


def test_a_folder_in_the_place_of_a_record_says_so(tmp_path: Path) -> None:
    (tmp_path / RECORD_FILE).mkdir()
    with pytest.raises(UnreadableError, match="Is a directory"):
        read_record(tmp_path)


def test_fields_that_are_not_known_are_let_be_and_those_that_lack_are_empty(tmp_path: Path) -> None:
    some_record().write(tmp_path)
    content = json.loads((tmp_path / RECORD_FILE).read_text())
    del content["versions"], content["command"], content["results"][0]["unit"]
    content["later"] = content["results"][0]["later"] = {"added": 1}
    (tmp_path / RECORD_FILE).write_text(json.dumps(content))
    record = read_record(tmp_path)
    assert record is not None
    assert (record.versions, record.command, record.results[0].unit) == ({}, [], "")
    assert record.results[1:] == some_record().results[1:]


def paths(value: object, above: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The way to every part of nested JSON."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [above, *(path for key, part in parts for path in paths(part, (*above, key)))]


def complaint_of(reader: Callable[[], object]) -> str:
    try:
        reader()
    except UsageError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("wrong", [None, [], {}, [1], {"a": 1}, 7, "text", "gone"], ids=str)
def test_any_wrong_shape_is_read_or_refused_in_one_line_by_all_readers(tmp_path: Path, wrong: object) -> None:
    record = some_record()
    held = {"device": "cpu", "dtype": "float32", "attn_implementation": "eager", "device_map": None}
    record.config["model"] = {"name": "tiny", "trust_remote_code": False, **held}
    record.files = {"mask.safetensors": {"bytes": 3, "sha256": "abc"}}
    record.write(tmp_path)
    whole = json.loads((tmp_path / RECORD_FILE).read_text())
    for path in paths(whole):
        content = json.loads(json.dumps(whole))
        at = content
        for key in path[:-1]:
            at = at[key]
        if not path:
            content = wrong
        elif wrong == "gone":
            del at[path[-1]]
        else:
            at[path[-1]] = wrong
        (tmp_path / RECORD_FILE).write_text(json.dumps(content))
        (run,) = find_runs([tmp_path])
        for reader in (lambda: read_record(tmp_path), lambda: targets.find(str(tmp_path), brings_only_ours)):
            complaint = complaint_of(reader)
            assert "\n" not in complaint
            if run.status == "unreadable":
                assert complaint, path
            else:
                assert not complaint or path[:2] in ((), ("config",), ("config", "model")), (path, complaint)
        values = (run.model, run.task, run.tuning, run.seed, run.keep, run.seconds("load"), run.peak_memory(["load"]))
        assert len(values) == 7


def test_no_file_is_no_record(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None


def test_versions_are_those_installed() -> None:
    versions = some_record().versions
    assert versions["policyprune"] == policyprune.__version__
    assert {"torch", "transformers", "datasets", "hydra-core", "numpy"} <= set(versions)
    assert all(versions.values())


def test_a_standard_error_is_a_number_or_null(tmp_path: Path) -> None:
    record = some_record()
    record.add("dense", "acc", 0.5, "", {}, stderr=math.nan)
    record.write(tmp_path)
    rows = json.loads((tmp_path / RECORD_FILE).read_text())["results"]
    assert [row["stderr"] for row in rows] == [None, None, 0.125, None]


def test_every_field_is_in_the_file(tmp_path: Path) -> None:
    some_record().write(tmp_path)
    content = json.loads((tmp_path / RECORD_FILE).read_text())
    assert set(content) == {field.name for field in dataclasses.fields(Record)}
