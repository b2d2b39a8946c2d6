"""What a search leaves on the disk as it goes: its curve, one JSON line per step, and the state that it goes on from.

A search that asks for its state saves it step by step: from then on signals wait for the next save.
"""

import hashlib
import io
import json
import logging
import math
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from policyprune.config.schema import Safety
from policyprune.runs.signals import INTERRUPTION
from policyprune.storage.files import write_whole

Written = tuple[int, str]  # bytes of a curve file, and their sha256
EMPTY: Written = (0, hashlib.sha256().hexdigest())
log = logging.getLogger(__name__)
FORMAT = "policyprune-state-2"
Content = dict[str, Any]  # tensors, numbers, strings, None, and lists and dicts of them


class Curve:
    """Appends steps to `curve.jsonl`, after the first `keep` bytes of what is there. Tensors stay on their device until
    `every` steps are there, so that the search does not wait for them one by one."""

    def __init__(self, path: Path, every: int, keep: int = 0) -> None:
        self._file = path.open("ab", buffering=0)
        self._file.truncate(keep)
        self._sum = hashlib.sha256(path.read_bytes())
        self._every = every
        self._pending: list[dict[str, Tensor | float]] = []

    def add(self, step: dict[str, Tensor | float]) -> list[dict[str, float]]:
        """Take a step; return the steps written now as plain numbers, none while they are held back."""
        self._pending.append(step)
        return self.flush() if len(self._pending) >= self._every else []

    def flush(self) -> list[dict[str, float]]:
        """Write what is held back."""
        plain = [{name: _number(value) for name, value in step.items()} for step in self._pending]
        self._pending.clear()
        text = "".join(_line(step) + "\n" for step in plain).encode()
        self._sum.update(text)
        while text:
            text = text[self._file.write(text) :]
        return plain

    def sync(self) -> Written:
        """Make sure that what was written outlives a power failure, and tell it from anything else."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size, self._sum.hexdigest()

    def __enter__(self) -> "Curve":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()
        finally:
            self._file.close()


def read_curve(path: Path, written: Written) -> list[dict[str, float]] | None:
    """The steps in what was written of a curve file, null as NaN; None where it is not that any more."""
    size, checksum = written
    try:
        with path.open("rb") as file:
            text = file.read(size)
        rows = [json.loads(line) for line in text.splitlines()]
    except (FileNotFoundError, ValueError):
        return None
    if hashlib.sha256(text).hexdigest() != checksum or not all(isinstance(row, dict) for row in rows):
        return None
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]


def _number(value: Tensor | float) -> float:
    return float(value) if isinstance(value, Tensor) else value


def _line(step: dict[str, float]) -> str:
    """JSON has no infinity and no NaN: they become null."""
    return json.dumps({name: value if math.isfinite(value) else None for name, value in step.items()})


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
