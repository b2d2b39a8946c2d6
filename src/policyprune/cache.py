"""The user's cache folder: converted weights, and what is measured once per machine."""

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """`$POLICYPRUNE_CACHE`, else `policyprune` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "policyprune"
    return Path(os.environ.get("POLICYPRUNE_CACHE", default))


def keep_text(path: Path, text: str) -> None:
    """Write atomically a file that other processes may write at the same time; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(scratch).replace(path)
    finally:
        Path(scratch).unlink(missing_ok=True)
