"""Seconds and memory of the stages."""

import time
from typing import Any

import pytest

from policyprune.runs.stages import measured


def test_seconds_and_peak_memory() -> None:
    stages: list[dict[str, Any]] = []
    with measured("sleep", stages):
        time.sleep(0.05)
    with measured("next", stages):
        pass
    assert [stage["name"] for stage in stages] == ["sleep", "next"]
    assert 0.05 <= stages[0]["seconds"] < 5
    assert stages[0]["peak_memory_mb"] > 1
    assert "peak_gpu_memory_mb" in stages[0]


def test_peak_covers_what_the_stage_takes() -> None:
    stages: list[dict[str, Any]] = []
    with measured("small", stages):
        pass
    with measured("large", stages):
        block = bytearray(300 * 2**20)
        block[:: 2**12] = b"x" * len(block[:: 2**12])
        del block
    assert stages[1]["peak_memory_mb"] - stages[0]["peak_memory_mb"] > 250


def test_a_stage_that_fails_is_listed_too() -> None:
    stages: list[dict[str, Any]] = []
    with pytest.raises(RuntimeError), measured("broken", stages):
        raise RuntimeError
    assert [stage["name"] for stage in stages] == ["broken"]
