"""What a number was measured on and with."""

import subprocess
from pathlib import Path

import pytest

import policyprune
from policyprune.provenance import git_state, hardware, installed_versions, source_hash


def test_git_state_is_that_of_the_source_tree() -> None:
    state = git_state()
    assert set(state) == {"commit", "dirty"}
    source = Path(policyprune.__file__).parent
    tracked = subprocess.run(
        ["git", "log", "-1", "--format=%H", "--", "."], cwd=source, capture_output=True, text=True, check=False
    )
    if tracked.returncode or not tracked.stdout.strip():
        assert state == {"commit": None, "dirty": None}
    else:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=source, capture_output=True, text=True, check=True)
        assert state["commit"] == head.stdout.strip()
        assert isinstance(state["dirty"], bool)


def test_git_state_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state() == {"commit": None, "dirty": None}


def test_hardware_is_named() -> None:
    machine = hardware("cpu", 3)
    assert (machine["device"], machine["threads"]) == ("cpu", 3)
    assert machine["processor"]
    assert machine["cores"] >= 1


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert installed_versions(["policyprune", "no-such-package-here"]) == {
        "policyprune": policyprune.__version__,
        "no-such-package-here": None,
    }


def test_the_source_has_one_hash() -> None:
    assert source_hash() == source_hash()
    assert len(source_hash()) == 64
