"""One process per run folder."""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from policyprune.errors import UsageError

log = logging.getLogger(__name__)
FILE = ".lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)  # some network file systems


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's lock during the block; the system releases it when the process dies, however it does.

    UsageError when another process holds it.
    """
    path = folder / FILE
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UsageError(
                f"hydra.run.dir: {str(folder)!r} is in use by another process, wait or name another folder"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            log.warning("%s cannot be locked on this file system, start no second process on it", folder)
        if _is(path, file.fileno()):
            break
        file.close()  # its holder removed it just now
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
