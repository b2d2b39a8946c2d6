"""The life of a run's folder: its record, from `running` to `finished` or `failed`."""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import torch
import yaml

from policyprune.config.schema import Config, Evaluating, Finetuning
from policyprune.config.validate import fingerprint
from policyprune.errors import Interrupted, RunError, UsageError
from policyprune.provenance import hardware
from policyprune.runs.artefacts import CURVE, MASK, lost, noted, work
from policyprune.runs.lock import only_one
from policyprune.runs.record import Record, mark_failed, read_record
from policyprune.runs.signals import interruptible
from policyprune.runs.state import forget
from policyprune.storage.files import clear, disk_trouble, write_whole
from policyprune.storage.record_file import RECORD_FILE, UnreadableError

log = logging.getLogger(__name__)
BEGUN = (RECORD_FILE, "config.yaml", CURVE, "importance.state", "wandb", "tensorboard")  # before a search or training
AnyConfig = Config | Finetuning | Evaluating
Mend = Callable[[Record], None]


def finished_before(config: AnyConfig, folder: Path, mend: Mend | None = None) -> Record | None:
    """The finished record of the same config in `folder`; None where it is to be run, or run again.

    `mend(record)` makes again what a finished run has lost, where its mask is not lost too. UsageError when another
    config was run there and left something, and for a record that cannot be read.
    """
    try:
        record = read_record(folder)
    except UnreadableError as error:
        if config.force:
            return None
        raise UsageError(
            f"hydra.run.dir: {str(folder)!r} holds a {RECORD_FILE} that cannot be read ({error.reason}), "
            "force=true begins anew, or name another folder"
        ) from error
    if record is None:
        return None
    if record.config_hash != fingerprint(config):
        if record.status == "finished" or work(folder):
            raise UsageError(
                f"hydra.run.dir: {str(folder)!r} holds a run of another config ({record.config_hash}), "
                "name another folder"
            )
        return None
    if record.status != "finished" or config.force:
        return None
    gone = lost(record.files, folder)
    if gone:
        log.warning("%s: the run is finished, but %s", folder, ", ".join(gone.values()))
    if not set(gone) - {CURVE}:
        return record
    if mend is None or MASK in gone:
        log.warning("it is run again")
        return None
    with only_one(folder):
        mend(record)
        record.files = noted(folder)
        record.write(folder)
    return record


@contextmanager
def recorded(config: AnyConfig, folder: Path, device: torch.device) -> Iterator[Record]:
    """A record that is on disk as `running` while the block runs, then as `finished`, `interrupted` or `failed`.

    UsageError when another process works in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_places(folder)
    with only_one(folder), interruptible():
        clear(folder)
        _forget_others(config, folder)
        before, done = _files(folder), work(folder)
        record = _begun(config, device)
        try:
            write_whole(folder / "config.yaml", yaml.safe_dump(record.config, sort_keys=False).encode())
            record.write(folder)
            yield record
            record.status, record.files = "finished", noted(folder)
            record.write(folder)
            forget(folder)
        except BaseException as error:
            if isinstance(error, UsageError) and work(folder) == done:
                with suppress(OSError):
                    _withdraw(folder, before)
            else:
                _end(record, folder, error)
            raise


def _check_places(folder: Path) -> None:
    """UsageError where a folder stands in the place of a file that the run writes, or the other way round."""
    for name in (*BEGUN[:4], MASK, "plan.json", "search.state", "checkpoint"):
        path, wanted = folder / name, "folder" if name == "checkpoint" else "file"
        if path.exists() and path.is_dir() != (wanted == "folder"):
            raise UsageError(f"hydra.run.dir: {str(path)!r} is no {wanted}, move it away or name another folder")


def _forget_others(config: AnyConfig, folder: Path) -> None:
    """States of a run that is finished, or of another config, are of no use to this one."""
    try:
        earlier = read_record(folder)
    except UnreadableError:
        earlier = None
    if earlier is not None and (earlier.status == "finished" or earlier.config_hash != fingerprint(config)):
        forget(folder)


def _files(folder: Path) -> dict[str, bytes | None]:
    """What stands in a run's first files; None for a tracker's folder."""
    found = {name: folder / name for name in BEGUN if (folder / name).exists()}
    return {name: None if path.is_dir() else path.read_bytes() for name, path in found.items()}


def _withdraw(folder: Path, before: Mapping[str, bytes | None]) -> None:
    """A run that was refused before it searched leaves the folder as it was."""
    for name in BEGUN:
        path, content = folder / name, before.get(name)
        if content is not None:
            write_whole(path, content)
        elif name not in before and path.is_dir():
            shutil.rmtree(path)
        elif name not in before:
            path.unlink(missing_ok=True)


def _begun(config: AnyConfig, device: torch.device) -> Record:
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
    try:
        record.write(folder)
    except OSError:
        with suppress(OSError):
            mark_failed(folder)
    if isinstance(error, UsageError):
        return
    if isinstance(error, Interrupted):
        log.warning("%s, the same command goes on from what was saved", reason)
    elif disk or isinstance(error, RunError) or (isinstance(error, OSError) and error.filename is not None):
        log.error("the run failed: %s; %s keeps what it had, the same command goes on from there", reason, folder)
    else:
        log.error("the run failed, %s keeps what it had", folder, exc_info=True)
        error.logged = True  # type: ignore[attr-defined]
