"""What a source string stands for: a hub id, a local path, or `pkg://package/path` inside an installed package."""

import importlib.util
from pathlib import Path

from policyprune.errors import UsageError

PACKAGE = "pkg://"


def locate(key: str, source: str) -> Path | None:
    """Return the file or directory that `source` names on this disk, None for a hub id.

    `key` is the config key that errors name. A package's files are found without importing it.
    """
    if not source.startswith(PACKAGE):
        path = Path(source).expanduser()
        if path.exists():
            return path
        if source.startswith(("/", ".", "~")):
            raise UsageError(f"{key}: {source!r} does not exist")
        return None
    package, _, inside = source.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"{key}: {source!r} needs the package {package!r}, install it (`make setup` does)")
    path = Path(spec.submodule_search_locations[0]) / inside
    if not path.exists():
        raise UsageError(f"{key}: {source!r} names no file of the package {package!r}")
    return path
