"""Files and folders that are there whole or not at all, locks between processes, and the user's cache folder.

All that is kept is written here: into a scratch folder beside the target, to the disk (fsync), then to its name. A
process that is killed on the way leaves a scratch folder; the next writer of the same target, or `clear`, removes it.
"""

import contextlib
import errno
import glob
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from policyprune.errors import describe

log = logging.getLogger(__name__)

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
SCRATCH_PREFIX, SCRATCH_SUFFIX = ".policyprune-", ".tmp"  # between them the target's name and a random number
NEW, OLD, LOCK = "new", "old", "lock"  # in a scratch folder: what is written, what was there before, and who is at it
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)  # what some network file systems answer


def write_whole(path: Path, content: bytes, keep: Path | None = None) -> None:
    """Write atomically: a reader sees the old or the new content, never a part, also after a power failure.

    What was there before is kept as `keep`. OSError naming the file where the disk refuses; nothing is changed then.
    """
    with write_file(path, keep) as scratch:
        scratch.write_bytes(content)


@contextmanager
def write_file(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """`write_whole` for those who write themselves: the file that the block writes becomes `path` if it ends well."""
    with _scratch(path) as scratch:
        yield scratch / NEW
        _to_disk(scratch / NEW)
        if keep is not None and path.exists():
            path.replace(keep)
        (scratch / NEW).replace(path)
        _sync(path.parent)


@contextmanager
def write_folder(folder: Path) -> Iterator[Path]:
    """The same for a folder, which takes the place of the one that was there."""
    with _scratch(folder) as scratch:
        new = scratch / NEW
        new.mkdir()
        yield new
        _to_disk(new)
        if folder.exists():
            folder.rename(scratch / OLD)
        new.rename(folder)
        _sync(folder.parent)


def clear(folder: Path, name: str = "*") -> None:
    """Remove the scratch folders that dead writers of `folder`/`name` (any name) left; those of live ones stay."""
    for scratch in folder.glob(f"{SCRATCH_PREFIX}{name}-*{SCRATCH_SUFFIX}"):
        with contextlib.suppress(OSError), hold(scratch / LOCK):  # held, removed just now, or no locks to tell by
            _discard(scratch)


def disk_trouble(error: BaseException) -> str | None:
    """One line when the disk refused to be written to (full, over quota, broken, read-only); None for other errors."""
    cause: BaseException | None = error
    while cause is not None:
        number = _errno(cause)
        if number in DISK_ERRORS:
            system_error = error if isinstance(error, OSError) else cause
            words = (
                str(system_error) if isinstance(system_error, OSError) else f"[Errno {number}] {os.strerror(number)}"
            )
            return " ".join(words.split())
        cause = cause.__cause__ or cause.__context__
    return None


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A scratch folder of this process beside the target; OSError inside the block names the target."""
    scratch = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        clear(target.parent, glob.escape(target.name))
        scratch, lock = _new_scratch(target)
        with lock:
            yield scratch
    except Exception as error:
        number = _errno(error)
        path = error.filename if isinstance(error, OSError) else None
        ours = str(target.with_name(f"{SCRATCH_PREFIX}{target.name}"))
        if number is None or (path is not None and not str(path).startswith(ours)):
            raise
        raise OSError(number, os.strerror(number), str(target)) from error
    finally:
        if scratch is not None:
            _discard(scratch)


def _new_scratch(target: Path) -> tuple[Path, contextlib.AbstractContextManager[object]]:
    while True:
        scratch = target.with_name(f"{SCRATCH_PREFIX}{target.name}-{secrets.token_hex(4)}{SCRATCH_SUFFIX}")
        scratch.mkdir()
        try:
            return scratch, hold_where_possible(scratch / LOCK)
        except (BlockingIOError, FileNotFoundError):
            continue  # another process took it for one that nobody is at
        except OSError:
            shutil.rmtree(scratch, ignore_errors=True)
            raise


def _discard(scratch: Path) -> None:
    """Remove a scratch folder; a target that was moved aside and has no successor goes back to its place."""
    target = scratch.with_name(
        scratch.name.removeprefix(SCRATCH_PREFIX).removesuffix(SCRATCH_SUFFIX).rpartition("-")[0]
    )
    if (scratch / OLD).exists() and not target.exists():
        (scratch / OLD).rename(target)
    shutil.rmtree(scratch, ignore_errors=True)


def _to_disk(new: Path) -> None:
    """Flush what was written, with the permissions that the umask gives: some libraries write for the owner alone."""
    mode = new.parent.stat().st_mode & 0o666
    for path in (new, *new.rglob("*")) if new.is_dir() else (new,):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # of folders, some cannot
            raise
    finally:
        os.close(descriptor)


def _errno(error: BaseException) -> int | None:
    """The system's number of an error, also of a library that is written in Rust."""
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match.group(1)) if match else None


def hold(path: Path, wait: bool = False) -> AbstractContextManager[object]:
    """Take the lock at `path` until the end of the block; its holder may remove the file before that.

    BlockingIOError when another process has it, unless `wait`. OSError with an errno of `NO_LOCKS` where none can be
    had.
    """
    lock = FileLock(path, blocking=wait, fallback_to_soft=False)  # a soft lock would outlive a holder that is killed
    while True:
        try:
            return lock.acquire()
        except Timeout:
            if path.exists():
                raise BlockingIOError(errno.EWOULDBLOCK, "another process holds it", str(path)) from None

            # its holder removed it just now


def hold_where_possible(path: Path, wait: bool = False) -> AbstractContextManager[object]:
    """The same, and nothing where the file system has no locks."""
    try:
        return hold(path, wait)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return nullcontext()


def cache_folder() -> Path:
    """`$POLICYPRUNE_CACHE`, else `policyprune` in the user's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`)."""
    return Path(os.environ.get("POLICYPRUNE_CACHE") or user_cache_path("policyprune", appauthor=False))


@contextmanager
def sparing_the_next_run() -> Iterator[None]:
    """The block writes what only saves time later: a disk that refuses it is a warning in the log, and no error."""
    try:
        yield
    except OSError as error:
        log.warning("not kept, the next run computes it again: %s", describe(error))


def made_once(target: Path, make: Callable[[Path], None]) -> Path:
    """Return `target`, after `make(target)` where it is not there yet. Other processes wait for the one that makes it.

    Where the file system has no locks, all make it, and the last one to finish leaves its own.
    """
    if target.exists():
        return target
    lock = cache_folder() / "locks" / f"{target.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with hold_where_possible(lock, wait=True):
        try:
            if not target.exists():
                make(target)
        finally:
            lock.unlink(missing_ok=True)
    return target
