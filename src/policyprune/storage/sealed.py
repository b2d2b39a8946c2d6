"""Arrays in a safetensors file that knows whether it is whole. Imports no torch."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from policyprune.errors import UsageError
from policyprune.storage.files import write_file

SUM = " sha256:"  # in one piece of metadata with the format: safetensors writes several in any order
Arrays = Mapping[str, "np.ndarray"]


def write_sealed(path: Path, arrays: Arrays, form: str) -> None:
    """Write atomically, with the name of the format and a checksum over names, types, shapes and values."""
    with write_file(path) as scratch:
        save_file(dict(arrays), scratch, metadata={"format": f"{form}{SUM}{_checksum(arrays)}"})


def read_sealed(path: Path, form: str, key: str = "mask") -> dict[str, "np.ndarray"]:
    """Read the arrays back; UsageError, which begins with `key`, for what is no whole file of that format.

    Files of older versions have no checksum and are taken as they are.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            stated, _, checksum = (file.metadata() or {}).get("format", "").partition(SUM)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise UsageError(f"{key}: {str(path)!r} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError, TypeError) as error:
        raise UsageError(f"{key}: {str(path)!r} is damaged or no {form} ({' '.join(str(error).split())})") from error
    if stated != form:
        raise UsageError(f"{key}: {str(path)!r} is no {form}")
    if checksum and checksum != _checksum(arrays):
        raise UsageError(f"{key}: {str(path)!r} is damaged (checksum), take another copy or run it again")
    return arrays


def _checksum(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
