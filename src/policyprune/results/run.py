"""The life of a run's folder: its record, from `running` to `finished` or `failed`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import torch
import yaml

from policyprune.config.schema import Config, Evaluating, Finetuning
from policyprune.config.settle import fingerprint
from policyprune.errors import Interrupted, RunError, UsageError
from policyprune.files import clear, disk_trouble, write_whole
from policyprune.results.interruption import interruptible
from policyprune.results.lock import only_one
from policyprune.results.record import Record, hardware, read_record
from policyprune.results.state import forget

log = logging.getLogger(__name__)


def finished_before(config: Config | Finetuning | Evaluating, folder: Path) -> Record | None:
    """The finished record of the same config in `folder`; UsageError when another config was run there."""
    record = read_record(folder)
    if record is None:
        return None
    if record.config_hash != fingerprint(config):
        raise UsageError(
            f"hydra.run.dir: {str(folder)!r} holds a run of another config ({record.config_hash}), name another folder"
        )
    return record if record.status == "finished" and not config.force else None


@contextmanager
def recorded(config: Config | Finetuning | Evaluating, folder: Path, device: torch.device) -> Iterator[Record]:
    """A record that is on disk as `running` while the block runs, then as `finished`, `interrupted` or `failed`.

    UsageError when another process works in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with only_one(folder), interruptible():
        clear(folder)
        earlier = read_record(folder)
        if earlier is not None and earlier.status == "finished":
            forget(folder)
        record = _begun(config, device)
        try:
            write_whole(folder / "config.yaml", yaml.safe_dump(record.config, sort_keys=False).encode())
            record.write(folder)
            yield record
            record.status = "finished"
            record.write(folder)
            forget(folder)
        except BaseException as error:
            _end(record, folder, error)
            raise


def _begun(config: Config | Finetuning | Evaluating, device: torch.device) -> Record:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Record(
        config=asdict(config),
        config_hash=fingerprint(config),
        hardware=hardware(name, torch.get_num_threads()),
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _end(record: Record, folder: Path, error: BaseException) -> None:
    """Say in the record and in the log why the run ended; a full disk must not hide the reason."""
    disk = disk_trouble(error)
    reason = disk or " ".join(str(error).split())
    record.status = "interrupted" if isinstance(error, Interrupted) else "failed"
    record.error = f"{type(error).__name__}: {reason}".strip()
    with suppress(OSError):
        record.write(folder)
    if isinstance(error, UsageError):
        return
    if isinstance(error, Interrupted):
        log.warning("%s, the same command goes on from what was saved", reason)
    elif disk or isinstance(error, RunError):
        log.error("the run failed: %s; %s keeps what it had, the same command goes on from there", reason, folder)
    else:
        log.error("the run failed, %s keeps what it had", folder, exc_info=True)
        error.logged = True  # type: ignore[attr-defined]
