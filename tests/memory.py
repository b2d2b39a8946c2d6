"""Bytes that tensors take on the CPU, what operators take for a moment included."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch.profiler import ProfilerActivity, profile


@dataclass
class Peak:
    """Most bytes at any time beyond those of the beginning, and those that are left in the end."""

    most: int = 0
    left: int = 0


@contextmanager
def peak() -> Iterator[Peak]:
    """Known when the block has ended."""
    found = Peak()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        yield found
    events = recorded.profiler.kineto_results.events()
    for event in sorted((own for own in events if own.name() == "[memory]"), key=lambda own: own.start_ns()):
        found.left += event.nbytes()
        found.most = max(found.most, found.left)
