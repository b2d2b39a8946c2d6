"""The life of a run's folder: one process at a time, its record from `running` to `finished` or `failed`."""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from policyprune.config.schema import Config
from policyprune.config.validate import fingerprint
from policyprune.errors import Interrupted, RunError, UsageError
from policyprune.provenance import hardware
from policyprune.runs.record import (
    AnyConfig,
    Record,
    files_of,
    forget,
    mark_failed,
    read_record,
    status_of,
    unfinished_work,
)
from policyprune.runs.signals import interruptible
from policyprune.storage.files import NO_LOCKS, clear, disk_trouble, hold, write_whole
from policyprune.storage.record_file import CURVE_FILE, MASK_FILE, PLAN_FILE, RECORD_FILE, UnreadableError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
LOCK_FILE, CONFIG_FILE = ".lock", "config.yaml"
FIRST_FILES = (RECORD_FILE, CONFIG_FILE, CURVE_FILE, "importance.state")  # those before a search or training
TRACKED = ("wandb", "tensorboard")  # and the trackers' folders


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's lock during the block; the system releases it when the process dies, however it does.

    UsageError when another process holds it.
    """
    path = folder / LOCK_FILE
    held: AbstractContextManager[object] = nullcontext()
    try:
        held = hold(path)
    except BlockingIOError:
        raise UsageError(
            f"hydra.run.dir: {str(folder)!r} is in use by another process, wait or name another folder"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning("%s cannot be locked on this file system, start no second process on it", folder)
    with held:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def finished_before(config: AnyConfig, folder: Path, repair: Callable[[Record], None] | None = None) -> Record | None:
    """The finished record of the same config in `folder`; None where it is to be run, or run again.

    `repair(record)` makes again what a finished run has lost, unless its mask is lost too. UsageError when another
    config was run there and left something, and for a record that cannot be read.
    """
    status = status_of(config, folder, "hydra.run.dir")
    if status.state == "unreadable" and not config.force:
        raise UsageError(
            f"hydra.run.dir: {str(folder)!r} holds a {RECORD_FILE} that cannot be read ({status.reason}), "
            "force=true begins anew, or name another folder"
        )
    record = status.record
    if record is None or record.status != "finished" or config.force:
        return None
    if status.lost:
        log.warning("%s: the run is finished, but %s", folder, ", ".join(status.lost.values()))
    if status.state == "finished":
        return record
    if repair is None or MASK_FILE in status.lost:
        log.warning("it is run again")
        return None
    with only_one(folder):
        repair(record)
        record.files = files_of(folder)
        record.write(folder)
    return record


@contextmanager
def recorded(config: AnyConfig, folder: Path, device: "torch.device") -> Iterator[Record]:
    """A record that is on disk as `running` while the block runs, then as `finished`, `interrupted` or `failed`.

    A run that is refused (UsageError) before its search leaves the folder as it was. UsageError when another process
    works in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_names(folder)
    with only_one(folder), interruptible():
        clear(folder)
        _forget_others(config, folder)
        files_before, work_before = _first_files(folder), unfinished_work(folder)
        record = _begun(config, device)
        try:
            write_whole(folder / CONFIG_FILE, yaml.safe_dump(record.config, sort_keys=False).encode())
            record.write(folder)
            yield record
            record.status, record.files = "finished", files_of(folder)
            record.write(folder)
            forget(folder)
        except BaseException as error:
            if isinstance(error, UsageError) and unfinished_work(folder) == work_before:
                with suppress(OSError):
                    _withdraw(folder, files_before)
            else:
                _end(record, folder, error)
            raise


@contextmanager
def noting_failure(config: Config, folder: Path) -> Iterator[None]:
    """Record an error of the block that came before the run had a record of its own, or ended without one."""
    before = _record_on_disk(folder)
    try:
        yield
    except Exception as error:
        with suppress(UsageError, OSError), only_one(folder):
            if _record_on_disk(folder) == before:  # otherwise the run has recorded its end itself
                _note(config, folder, error)
        raise


def _check_names(folder: Path) -> None:
    """UsageError where a folder stands in the place of a file that the run writes, or the other way round."""
    for name in (*FIRST_FILES, MASK_FILE, PLAN_FILE, "search.state", "checkpoint"):
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


def _first_files(folder: Path) -> dict[str, bytes | None]:
    """What stands in a run's first files; None for a tracker's folder."""
    paths = {name: folder / name for name in (*FIRST_FILES, *TRACKED) if (folder / name).exists()}
    return {name: None if path.is_dir() else path.read_bytes() for name, path in paths.items()}


def _withdraw(folder: Path, before: Mapping[str, bytes | None]) -> None:
    """A run that was refused before it searched leaves the folder as it was."""
    for name in (*FIRST_FILES, *TRACKED):
        path, content = folder / name, before.get(name)
        if content is not None:
            write_whole(path, content)
        elif name not in before and path.is_dir():
            shutil.rmtree(path)
        elif name not in before:
            path.unlink(missing_ok=True)


def _begun(config: AnyConfig, device: "torch.device") -> Record:
    import torch

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


def _note(config: Config, folder: Path, error: Exception) -> None:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    log.error("the run failed: %s", reason)
    record = read_record(folder) or Record(
        config=asdict(config), config_hash=fingerprint(config), hardware=hardware(config.model.device, 0)
    )
    if record.status == "finished":  # force=true was refused
        return
    record.started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record.status, record.error = "failed", reason
    record.write(folder)


def _record_on_disk(folder: Path) -> bytes | None:
    try:
        return (folder / RECORD_FILE).read_bytes()
    except OSError:
        return None
