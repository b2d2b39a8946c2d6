"""The user's cache folder: converted weights, and what is measured once per machine."""

import os
from collections.abc import Callable
from pathlib import Path

from platformdirs import user_cache_path

from policyprune.storage.locks import hold_where_possible


def cache_folder() -> Path:
    """`$POLICYPRUNE_CACHE`, else `policyprune` in the user's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`)."""
    return Path(os.environ.get("POLICYPRUNE_CACHE") or user_cache_path("policyprune", appauthor=False))


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
