"""SIGINT and SIGTERM end a run at once, or where the search has just saved its state."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from policyprune.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Interruption:
    """The first signal that came, and whether it waits for `raise_if_received`."""

    number: int | None = None
    waits: bool = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: raises Interrupted unless the search saves first; a second signal waits for nothing."""
        first, self.number = self.number is None, self.number or number
        if not (first and self.waits):
            raise Interrupted(number)

    def raise_if_received(self) -> None:
        """Raise Interrupted if a signal is waiting."""
        if self.number is not None:
            raise Interrupted(self.number)

    @contextmanager
    def put_off(self) -> Iterator[None]:
        """Signals wait for `raise_if_received`, at the latest for the end of the block."""
        self.waits = True
        try:
            yield
        finally:
            self.waits = False
        self.raise_if_received()


INTERRUPTION = Interruption()  # signals are the whole process's


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the signals into Interrupted during the block. Only a main thread can; another one is left as it is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    INTERRUPTION.number = None
    before = {number: signal.signal(number, INTERRUPTION.receive) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
