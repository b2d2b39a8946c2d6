"""Seconds and peak memory of the stages of a run."""

import logging
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)
STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


@contextmanager
def measured(name: str, stages: list[dict[str, Any]]) -> Iterator[None]:
    """Append {name, seconds, peak_memory_mb, peak_gpu_memory_mb} to `stages` when the block ends, even by an error."""
    _reset_peak()
    began = time.perf_counter()
    try:
        yield
    finally:
        gpu = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
        seconds = time.perf_counter() - began
        log.info("%s: %.1f s", name, seconds)
        stages.append(
            {
                "name": name,
                "seconds": round(seconds, 3),
                "peak_memory_mb": round(_peak_mb(), 1),
                "peak_gpu_memory_mb": gpu,
            }
        )


def _reset_peak() -> None:
    """Start a new peak where the system can (Linux); elsewhere peaks are those of the process so far."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        CLEAR.write_text("5")


def _peak_mb() -> float:
    try:
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)
