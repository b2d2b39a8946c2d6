"""What a source string stands for: a hub id, a local path, or `pkg://package/path` inside an installed package."""

import importlib.util
import re
from pathlib import Path

from policyprune.errors import UsageError
from policyprune.storage.checkpoint_files import check_model

PACKAGE = "pkg://"
HUB = re.compile(r"([\w-][\w.-]*(/[\w-][\w.-]*)?|[\w.-]+/[\w.-]+/.+\.gguf)", re.ASCII)


def locate(key: str, source: str) -> Path | None:
    """Return the file or directory that `source` names on this disk, None for a hub id.

    `key` is the config key that errors name. A package's files are found without importing it.
    """
    if not source.startswith(PACKAGE):
        try:
            path = Path(source).expanduser()
            path.stat()
            return path
        except (FileNotFoundError, NotADirectoryError, RuntimeError, ValueError):
            pass  # RuntimeError: the home of somebody who has none; ValueError: no name of a file
        except OSError as error:
            raise UsageError(f"{key}: {source!r} cannot be read: {error.strerror}") from error
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


def locate_model(source: str) -> Path | None:
    """The same for a model, which lies on the hub where it lies on no disk; UsageError where it can lie on neither."""
    if not source:
        raise UsageError("model.source: empty, give a hub id, a directory, a .gguf file or pkg://package/path")
    path = locate("model.source", source)
    if path is None and (not HUB.fullmatch(source) or (source.endswith(".gguf") and source.count("/") < 2)):
        raise UsageError(
            f"model.source: {source!r} does not exist, and is no name on the hub (owner/name, owner/name/file.gguf)"
        )
    return path


def check_source(source: str, weights: bool = True) -> None:
    """UsageError for a model source that this machine lacks, or whose files are not whole. Needs no torch.

    `weights`: whether they have to be there.
    """
    path = locate_model(source)
    if path is not None:
        check_model(source, path, weights)
