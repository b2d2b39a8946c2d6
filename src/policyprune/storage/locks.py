"""A file as a lock between processes; the system releases it when its holder dies, however it does."""

import errno
import fcntl
import os
from pathlib import Path
from typing import IO

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)  # some network file systems


def hold(path: Path) -> IO[bytes]:
    """Take the lock at `path` until what is returned is closed; its holder may remove the file before that.

    BlockingIOError when another process has it, OSError with an errno of `NO_LOCKS` where none can be had.
    """
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise
        if _is(path, file.fileno()):
            return file
        file.close()  # its holder removed it just now


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
