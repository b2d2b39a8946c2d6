"""The life of a run's folder."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml

from harness import settled
from policyprune.config.schema import Config
from policyprune.config.settle import fingerprint
from policyprune.errors import Interrupted, RunError, UsageError
from policyprune.results.interruption import INTERRUPTION
from policyprune.results.record import FILE
from policyprune.results.run import finished_before, recorded

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config() -> Config:
    return settled("optimizer=one_shot")


def on_disk(folder: Path) -> dict[str, object]:
    """The record as it is in the file now."""
    content: dict[str, object] = json.loads((folder / FILE).read_text())
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


@pytest.mark.parametrize("error", [RuntimeError("out of\n  memory"), UsageError("task.x: wrong"), KeyboardInterrupt()])
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
    found = finished_before(config, tmp_path)
    assert found is not None
    assert found.config_hash == fingerprint(config)


def test_force_repeats(config: Config, tmp_path: Path) -> None:
    with recorded(config, tmp_path, CPU):
        pass
    assert finished_before(settled("optimizer=one_shot", "force=true"), tmp_path) is None


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
    before = (tmp_path / FILE).read_bytes()
    other = settled("optimizer=one_shot", "seed=1", f"force={force}")
    with pytest.raises(UsageError, match=r"hydra\.run\.dir: .*name another folder"):
        finished_before(other, tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


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
    assert ("101 masks" if isinstance(error, RunError) else "No space left on device") in line.message


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
    assert on_disk(tmp_path)["status"] == "running"
