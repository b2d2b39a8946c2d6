"""The life of a run's folder."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
import yaml

from harness import validated
from policyprune.config.schema import Config
from policyprune.config.validate import fingerprint
from policyprune.errors import Interrupted, RunError, UsageError
from policyprune.runs.folder import LOCK_FILE, finished_before, only_one, recorded
from policyprune.runs.signals import INTERRUPTION
from policyprune.storage.record_file import RECORD_FILE

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config() -> Config:
    return validated("optimizer=one_shot")


def on_disk(folder: Path) -> dict[str, object]:
    """The record as it is in the file now."""
    content: dict[str, object] = json.loads((folder / RECORD_FILE).read_text())
    return content


def test_running_while_it_runs_and_finished_after(config: Config, tmp_path: Path) -> None:
    with recorded(config, tmp_path / "deep" / "run", CPU) as record:
        assert on_disk(tmp_path / "deep" / "run")["status"] == "running"
        record.add("dense", "perplexity", 3.0, "", {"length": 8})
    done = on_disk(tmp_path / "deep" / "run")
    assert (done["status"], done["error"]) == ("finished", None)
    assert done["config_hash"] == fingerprint(config)
    assert done["results"]
    assert done["started"]


def test_config_file_is_the_whole_config(config: Config, tmp_path: Path) -> None:
    with recorded(config, tmp_path, CPU):
        pass
    content = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert content == on_disk(tmp_path)["config"]
    assert content["budget"]["keep"] == config.budget.keep


@pytest.mark.parametrize("error", [RuntimeError("out of\n  memory"), RunError("it broke"), KeyboardInterrupt()])
def test_failed_with_the_error(config: Config, tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        with recorded(config, tmp_path, CPU) as record:
            record.add("dense", "perplexity", 3.0, "", {"length": 8})
            raise error

    with pytest.raises(type(error)):
        fail()
    failed = on_disk(tmp_path)
    assert failed["status"] == "failed"
    assert str(failed["error"]).startswith(type(error).__name__)
    assert " ".join(str(error).split()) in str(failed["error"])
    assert failed["results"], "what was measured before the failure is lost"


def test_nothing_there_is_not_finished(config: Config, tmp_path: Path) -> None:
    assert finished_before(config, tmp_path) is None
    assert finished_before(config, tmp_path / "nowhere") is None


def test_a_finished_run_is_found(config: Config, tmp_path: Path) -> None:
    with recorded(config, tmp_path, CPU):
        pass
    record = finished_before(config, tmp_path)
    assert record is not None
    assert record.config_hash == fingerprint(config)


def test_force_repeats(config: Config, tmp_path: Path) -> None:
    with recorded(config, tmp_path, CPU):
        pass
    assert finished_before(validated("optimizer=one_shot", "force=true"), tmp_path) is None


def test_failed_and_interrupted_runs_are_repeated(config: Config, tmp_path: Path) -> None:
    with recorded(config, tmp_path, CPU):
        assert finished_before(config, tmp_path) is None, "a run that was killed is taken for a finished one"
    with pytest.raises(RuntimeError), recorded(config, tmp_path, CPU):
        raise RuntimeError
    assert finished_before(config, tmp_path) is None


@pytest.mark.parametrize("force", ["false", "true"])
def test_another_config_in_the_same_folder_is_refused(config: Config, tmp_path: Path, force: str) -> None:
    with recorded(config, tmp_path, CPU):
        pass
    before = (tmp_path / RECORD_FILE).read_bytes()
    another = validated("optimizer=one_shot", "seed=1", f"force={force}")
    with pytest.raises(UsageError, match=r"hydra\.run\.dir: .*name another folder"):
        finished_before(another, tmp_path)
    assert (tmp_path / RECORD_FILE).read_bytes() == before


def test_an_interrupted_run_says_so_and_keeps_its_states(config: Config, tmp_path: Path) -> None:
    def stopped() -> None:
        with recorded(config, tmp_path, CPU):
            (tmp_path / "search.state").write_bytes(b"state")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(Interrupted):
        stopped()
    interrupted = on_disk(tmp_path)
    assert (interrupted["status"], interrupted["error"]) == ("interrupted", "Interrupted: interrupted by SIGTERM")
    assert (tmp_path / "search.state").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_that_is_put_off_waits_for_the_end_of_the_block_and_a_second_one_does_not(
    config: Config, tmp_path: Path
) -> None:
    seen: list[signal.Signals] = []

    def stopped(*signals: signal.Signals) -> None:
        with recorded(config, tmp_path, CPU), INTERRUPTION.put_off():
            for number in signals:
                os.kill(os.getpid(), number)
                seen.append(number)

    with pytest.raises(Interrupted) as ended:
        stopped(signal.SIGINT)
    assert seen == [signal.SIGINT]
    assert ended.value.exit_code == 130
    with pytest.raises(Interrupted):
        stopped(signal.SIGTERM, signal.SIGINT)
    assert seen == [signal.SIGINT, signal.SIGTERM]


def test_a_finished_run_needs_no_states_and_force_finds_none(config: Config, tmp_path: Path) -> None:
    with recorded(config, tmp_path, CPU):
        (tmp_path / "search.state").write_bytes(b"state")
    assert not (tmp_path / "search.state").exists()
    (tmp_path / "search.state").write_bytes(b"killed just before it was removed")
    with recorded(config, tmp_path, CPU):
        assert not (tmp_path / "search.state").exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device", "curve.jsonl"),
        IsADirectoryError(21, "Is a directory", "curve.jsonl"),
        RunError("101 masks had a loss that is NaN"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_an_expected_end_is_one_line_in_the_log(
    config: Config, tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(type(error)), recorded(config, tmp_path, CPU):
        raise error
    assert on_disk(tmp_path)["status"] == "failed"
    (line,) = caplog.records
    assert line.exc_info is None
    words = {RunError: "101 masks", IsADirectoryError: "'curve.jsonl'"}.get(type(error), "No space left on device")
    assert words in line.message


def test_a_disk_too_full_for_the_record_does_not_hide_the_reason(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device", str(folder))

    def fail() -> None:
        with recorded(config, tmp_path, CPU) as record:
            monkeypatch.setattr(record, "write", full)
            raise OSError(28, "No space left on device", "the curve")

    with pytest.raises(OSError, match="the curve"):
        fail()
    assert "the curve" in caplog.text
    assert on_disk(tmp_path)["status"] == "failed"
    assert on_disk(tmp_path)["config_hash"] == fingerprint(config)


def folder_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def refused(config: Config, folder: Path, *, searched: bool = False) -> None:
    def run() -> None:
        with recorded(config, folder, CPU) as record:
            record.add("dense", "perplexity", 3.0, "", {})
            (folder / "curve.jsonl").write_text("")
            (folder / "importance.state").write_bytes(b"state")
            (folder / "tensorboard").mkdir(exist_ok=True)
            if searched:
                (folder / "search.state").write_bytes(b"state")
            raise UsageError("task.data_files: the labels are wrong")

    with pytest.raises(UsageError, match="labels"):
        run()


def test_a_run_that_is_refused_before_it_searched_leaves_nothing(config: Config, tmp_path: Path) -> None:
    refused(config, tmp_path)
    assert list(tmp_path.iterdir()) == []
    with recorded(validated("optimizer=one_shot", "seed=1"), tmp_path, CPU):
        pass


def test_a_refusal_leaves_a_finished_run_as_it_was(config: Config, tmp_path: Path) -> None:
    with recorded(config, tmp_path, CPU):
        (tmp_path / "curve.jsonl").write_text("a curve")
        (tmp_path / "mask.safetensors").write_text("a mask")
    before = folder_of(tmp_path)
    refused(validated("optimizer=one_shot", "force=true"), tmp_path)
    assert folder_of(tmp_path) == before


def test_a_refusal_after_the_search_is_recorded_and_protects_what_was_found(config: Config, tmp_path: Path) -> None:
    refused(config, tmp_path, searched=True)
    assert on_disk(tmp_path)["status"] == "failed"
    with pytest.raises(UsageError, match="another config"):
        finished_before(validated("optimizer=one_shot", "seed=1"), tmp_path)


def test_a_failed_run_without_a_search_gives_way_to_another_config(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "importance.state").write_bytes(b"of another config")
    with pytest.raises(RuntimeError), recorded(config, tmp_path, CPU):
        raise RuntimeError
    caplog.clear()
    another = validated("optimizer=one_shot", "seed=1")
    assert finished_before(another, tmp_path) is None
    with recorded(another, tmp_path, CPU):
        assert not (tmp_path / "importance.state").exists()
    assert finished_before(another, tmp_path) is not None
    assert not caplog.records


@pytest.mark.parametrize("content", ["", '{"schema": 1, "status": "finished", "con', "[]", "null", '{"schema": 7}'])
def test_a_record_that_cannot_be_read_is_not_overwritten(config: Config, tmp_path: Path, content: str) -> None:
    (tmp_path / RECORD_FILE).write_text(content)
    with pytest.raises(UsageError, match=r"hydra\.run\.dir: .* cannot be read \([^\n]*\), force=true [^\n]*$"):
        finished_before(config, tmp_path)
    assert finished_before(validated("optimizer=one_shot", "force=true"), tmp_path) is None
    with recorded(config, tmp_path, CPU):
        pass
    assert finished_before(config, tmp_path) is not None


def test_what_a_killed_run_was_writing_is_removed_by_the_next_one(config: Config, tmp_path: Path) -> None:
    for name in ("checkpoint", "search.state", "mask.safetensors"):
        left = tmp_path / f".policyprune-{name}-0a1b2c3d.tmp"
        left.mkdir()
        (left / "new").write_bytes(b"half")
    with recorded(config, tmp_path, CPU):
        assert not list(tmp_path.glob(".policyprune*"))


IN_PLACE = ["record.json", "config.yaml", "curve.jsonl", "mask.safetensors", "plan.json", "checkpoint"]


@pytest.mark.parametrize("name", IN_PLACE)
def test_what_stands_in_the_place_of_another_thing_is_refused_and_left(
    config: Config, tmp_path: Path, name: str
) -> None:
    if name == "checkpoint":
        (tmp_path / name).touch()
    else:
        (tmp_path / name).mkdir()
    refusal = rf"^hydra\.run\.dir: '[^\n]*{name}' is no (file|folder), move it away or name another folder$"
    with pytest.raises(UsageError, match=refusal), recorded(config, tmp_path, CPU):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "ab")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_refused_while_another_process_holds_it_and_free_when_it_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path / LOCK_FILE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=r"hydra\.run\.dir: .* in use by another process"), only_one(tmp_path):
            pytest.fail("let in")
        holder.kill()
    with only_one(tmp_path):
        assert (tmp_path / LOCK_FILE).exists()
    assert not list(tmp_path.iterdir())


def test_a_lock_file_that_its_holder_removed_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the file and locking it, its holder may end and remove it."""
    import fcntl

    calls = []

    def flock(file: object, how: int) -> None:
        if not calls:
            (tmp_path / LOCK_FILE).unlink()
        calls.append(how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with only_one(tmp_path):
        assert (tmp_path / LOCK_FILE).exists()
    assert calls.count(fcntl.LOCK_EX | fcntl.LOCK_NB) == 2


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import errno
    import fcntl

    def flock(file: object, how: int) -> None:
        raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr(fcntl, "flock", flock)
    with only_one(tmp_path):
        pass
    assert "cannot be locked" in caplog.text
