"""A file as a lock between processes; the system releases it when its holder dies, however it does."""

import errno
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from filelock import FileLock, Timeout

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)  # what some network file systems answer


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
