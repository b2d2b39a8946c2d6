"""State files: what an unfinished run needs to go on where it was, and when a search saves it.

A search that asks for its state saves it step by step: from then on signals wait for the next save.
"""

import hashlib
import io
import json
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from policyprune.config.schema import Safety
from policyprune.runs.signals import INTERRUPTION
from policyprune.storage.files import write_whole

log = logging.getLogger(__name__)
FORMAT = "policyprune-state-2"

Content = dict[str, Any]  # tensors, numbers, strings, None, and lists and dicts of them


@dataclass(frozen=True)
class StateFile:
    """`path`, and the state before it in `path.old`. `made_for` names the run; the state of another one is not used."""

    path: Path
    made_for: dict[str, str]

    @property
    def _older(self) -> Path:
        return self.path.with_name(f"{self.path.name}.old")

    def write(self, content: Content) -> None:
        """Write atomically with a checksum, keeping the state before. OSError where the disk refuses."""
        buffer = io.BytesIO()
        torch.save(content, buffer)
        payload = buffer.getvalue()
        header = {"format": FORMAT, "made_for": self.made_for, "sha256": hashlib.sha256(payload).hexdigest()}
        write_whole(self.path, json.dumps(header).encode() + b"\n" + payload, keep=self._older)

    def read(self, usable: Callable[[Content], bool] = lambda content: True) -> Content | None:
        """The newest state that is whole, of this run and `usable`, its tensors on the CPU; None where there is none.

        Any other is removed, with one line in the log, so that it never takes the place of a good one.
        """
        for path in (self.path, self._older):
            try:
                stored = path.read_bytes()
            except FileNotFoundError:
                continue
            content = self._parsed(stored)
            if not isinstance(content, str) and usable(content):
                return content
            reason = content if isinstance(content, str) else "does not fit the files beside it"
            log.warning("%s %s and is not used", path.name, reason)
            path.unlink()
        return None

    def _parsed(self, stored: bytes) -> Content | str:
        """The content, or what is wrong with it."""
        head, _, payload = stored.partition(b"\n")
        try:
            header = json.loads(head)
            known = header["format"] == FORMAT
            made_for, checksum = header["made_for"], header["sha256"]
        except (ValueError, KeyError, TypeError):
            return "is damaged"
        if not known:
            return f"has the format {header['format']}, not {FORMAT},"
        if hashlib.sha256(payload).hexdigest() != checksum:
            return "is damaged (checksum)"
        if made_for != self.made_for:
            return f"is of another run ({made_for})"
        content: Content = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        return content


class SearchState:
    """The `State` of an optimizer, on disk, for a `with` block. `around()` gives what is saved beside its own."""

    def __init__(
        self, *, file: StateFile, safety: Safety, before: Content | None, around: Callable[[], Content]
    ) -> None:
        self._file, self._safety, self._around = file, safety, around
        self._before: dict[str, Any] | None = before and before["search"]
        self._steps, self._saved_at = 0, time.monotonic()
        self._waiting = ExitStack()

    def __enter__(self) -> "SearchState":
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
        INTERRUPTION.raise_if_received()

    def end(self, result: dict[str, Any]) -> None:
        """Save the result, so that a run that ends later on does not search again."""
        self._file.write({**self._around(), "search": None, "found": result})


def once(file: StateFile, compute: Callable[[], Content]) -> Content:
    """What `compute` gave the first time that this run came here, kept in `file`; tensors come back on the CPU."""
    content = file.read()
    if content is None:
        content = compute()
        file.write(content)
    return content
