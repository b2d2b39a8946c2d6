"""How far the run in a folder is, as its record tells it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from policyprune.config.schema import Config
from policyprune.config.validate import fingerprint
from policyprune.errors import UsageError
from policyprune.provenance import hardware
from policyprune.runs.artefacts import CURVE, lost, work
from policyprune.runs.lock import only_one
from policyprune.runs.record import Record, read_record
from policyprune.storage.record_file import RECORD_FILE, UnreadableError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standing:
    """`state`: new (no record), running (also when killed), interrupted, failed, finished, incomplete (finished, but
    files of it are lost) or unreadable (its record); and why."""

    state: str
    reason: str = ""


def standing(config: Config, folder: Path) -> Standing:
    """Look at the record; UsageError when it is that of another config."""
    try:
        record = read_record(folder)
    except UnreadableError as error:
        return Standing("unreadable", error.reason)
    if record is None:
        return Standing("new")
    if record.config_hash != fingerprint(config):
        if record.status != "finished" and not work(folder):
            return Standing("new")
        raise UsageError(
            f"hydra.sweep.dir: {str(folder)!r} holds a run of another config ({record.config_hash}), "
            "name another folder"
        )
    gone = lost(record.files, folder) if record.status == "finished" else {}
    if set(gone) - {CURVE}:
        return Standing("incomplete", ", ".join(gone.values()))
    return Standing(record.status, record.error or "")


@contextmanager
def noting_failure(config: Config, folder: Path) -> Iterator[None]:
    """Record an error of the block that came before the run had a record of its own, or ended without one."""
    before = _on_disk(folder)
    try:
        yield
    except Exception as error:
        with suppress(UsageError, OSError), only_one(folder):
            if _on_disk(folder) == before:  # or the run told its end itself
                _note(config, folder, error)
        raise


def _note(config: Config, folder: Path, error: Exception) -> None:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    log.error("the run failed: %s", reason)
    record = read_record(folder) or Record(asdict(config), fingerprint(config), hardware(config.model.device, 0))
    if record.status == "finished":  # force=true was refused
        return
    record.started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record.status, record.error = "failed", reason
    record.write(folder)


def _on_disk(folder: Path) -> bytes | None:
    try:
        return (folder / RECORD_FILE).read_bytes()
    except OSError:
        return None
