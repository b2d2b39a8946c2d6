"""The user's cache folder: converted weights, and what is measured once per machine."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$POLICYPRUNE_CACHE`, else `policyprune` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "policyprune"
    return Path(os.environ.get("POLICYPRUNE_CACHE", default))
