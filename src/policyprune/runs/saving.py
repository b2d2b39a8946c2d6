"""When a search's state is saved: every so often, when a signal came, and when the search has ended.

A search that asks for its state goes step by step and saves it: from then on signals wait for that.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from policyprune.config.schema import Safety
from policyprune.runs.signals import INTERRUPTION
from policyprune.runs.state import Content, StateFile


class Saving:
    """The `State` of an optimizer, on disk, for a `with` block. `around()` gives what is saved beside its own."""

    def __init__(self, file: StateFile, safety: Safety, before: Content | None, around: Callable[[], Content]) -> None:
        self._file, self._safety, self._around = file, safety, around
        self._before: dict[str, Any] | None = before and before["search"]
        self._steps, self._saved_at = 0, time.monotonic()
        self._waiting = ExitStack()

    def __enter__(self) -> "Saving":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._waiting.__exit__(kind, error, trace)

    def load(self) -> dict[str, Any] | None:
        """What the optimizer saved last; signals wait for the next save from here on."""
        self._waiting.enter_context(INTERRUPTION.put_off())
        return self._before

    def save(self, make: Callable[[], dict[str, Any]]) -> None:
        """Save if it is time; raises Interrupted afterwards if a signal waits for that."""
        self._steps += 1
        safety, seconds = self._safety, time.monotonic() - self._saved_at
        by_time = safety.save_seconds is not None and seconds >= safety.save_seconds
        by_steps = safety.save_steps is not None and self._steps >= safety.save_steps
        if by_time or by_steps or INTERRUPTION.number is not None:
            self._file.write({**self._around(), "search": make(), "found": None})
            self._steps, self._saved_at = 0, time.monotonic()
        INTERRUPTION.now()

    def end(self, found: dict[str, Any]) -> None:
        """Save the result, so that a run that ends later on does not search again."""
        self._file.write({**self._around(), "search": None, "found": found})
