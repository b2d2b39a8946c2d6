"""One process per run folder."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from policyprune.errors import UsageError
from policyprune.storage.locks import NO_LOCKS, hold

log = logging.getLogger(__name__)
FILE = ".lock"


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's lock during the block; the system releases it when the process dies, however it does.

    UsageError when another process holds it.
    """
    path = folder / FILE
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
