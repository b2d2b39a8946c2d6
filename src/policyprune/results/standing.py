"""How far the run in a folder is, as its record tells it."""

import contextlib
import logging
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from policyprune.config.schema import Config
from policyprune.config.settle import fingerprint
from policyprune.errors import UsageError
from policyprune.results.lock import only_one
from policyprune.results.record import Record, hardware, read_record

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standing:
    """`state`: new (no record), running (also when killed), interrupted, failed or finished; and why it ended."""

    state: str
    reason: str = ""


def standing(config: Config, folder: Path) -> Standing:
    """Look at the record; UsageError when it is that of another config."""
    record = read_record(folder)
    if record is None:
        return Standing("new")
    if record.config_hash != fingerprint(config):
        raise UsageError(
            f"hydra.sweep.dir: {str(folder)!r} holds a run of another config ({record.config_hash}), "
            "name another folder"
        )
    return Standing(record.status, record.error or "")


def note_failure(config: Config, folder: Path, error: Exception, before: Record | None) -> None:
    """Record an error that came before the run had a record of its own.

    `before` is the record that was there when the run began: where it has changed, the run told its end itself.
    """
    with contextlib.suppress(UsageError, OSError), only_one(folder):
        if read_record(folder) != before:
            return
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        log.error("the run failed: %s", reason)
        record = before or Record(asdict(config), fingerprint(config), hardware(config.model.device, 0))
        record.started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        record.status, record.error = "failed", reason
        record.write(folder)
