"""The user's cache folder: converted weights, and what is measured once per machine."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from policyprune.storage.locks import NO_LOCKS, hold

PAUSE = 0.1  # seconds between two looks at a lock


def cache_folder() -> Path:
    """`$POLICYPRUNE_CACHE`, else `policyprune` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "policyprune"
    return Path(os.environ.get("POLICYPRUNE_CACHE", default))


@contextlib.contextmanager
def only_one_makes(target: Path) -> Iterator[None]:
    """Wait until no other process makes `target`: look again inside whether it is there by now.

    Where the file system has no locks, all make it, and the last one to finish leaves its own.
    """
    folder = cache_folder() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / f"{target.name}.lock"
    while True:
        try:
            held: contextlib.AbstractContextManager[object] = hold(lock)
            break
        except BlockingIOError:
            time.sleep(PAUSE)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            held = contextlib.nullcontext()
            break
    with held:
        yield
        lock.unlink(missing_ok=True)
