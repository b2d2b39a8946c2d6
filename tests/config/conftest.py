"""Calling the command line in this process."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from policyprune import cli
from policyprune.config import application

Refusal = Callable[..., str]


@pytest.fixture
def call_main(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], own_logging: None
) -> Callable[..., tuple[int, str]]:
    """`call_main(*arguments)` runs the command in an empty folder and returns its exit code and stderr."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(*arguments: str) -> tuple[int, str]:
        GlobalHydra.instance().clear()
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.setattr(sys, "argv", ["policyprune", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capfd.readouterr().err

    return call


@pytest.fixture
def refusal(call_main: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> Refusal:
    """`refusal(*arguments)` returns the one line that the command ends with, before any run begins."""

    def begins(*given: object) -> None:
        pytest.fail("the run begins")

    monkeypatch.setattr(application._Jobs, "perform", begins)

    def call(*arguments: str) -> str:
        status, error = call_main(*arguments)
        assert status == 2
        assert error.count("\n") == 1, error
        assert error.startswith("policyprune: ")
        assert not list(Path().iterdir())
        return error.removeprefix("policyprune: ").strip()

    return call
