"""The files of a run: those of a finished one are noted in its record, and looked for later on. Imports no torch."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CURVE, MASK = "curve.jsonl", "mask.safetensors"
SUMMED = (MASK, "plan.json", CURVE)  # with a checksum
SIZED = ("checkpoint/*.safetensors", "onnx/model.onnx*", "*.gguf")  # weights, too large to be read for this
WORK = ("search.state", "search.state.old", "trainer/checkpoint-*")


def work(folder: Path) -> set[tuple[str, int]]:
    """What an unfinished search or training has left to go on from, and when: what another run must not replace."""
    return {(path.name, path.stat().st_mtime_ns) for own in WORK for path in folder.glob(own)}


def noted(folder: Path) -> dict[str, dict[str, Any]]:
    """What there is of a run's files: bytes of each by its path in the folder, and sha256 where it is small."""
    found = {
        path.relative_to(folder).as_posix(): path for own in (*SUMMED, *SIZED) for path in sorted(folder.glob(own))
    }
    return {
        name: {"bytes": path.stat().st_size, **({"sha256": _checksum(path)} if name in SUMMED else {})}
        for name, path in found.items()
    }


def lost(files: Mapping[str, Mapping[str, Any]], folder: Path) -> dict[str, str]:
    """What became of files that are no more as they were `noted`: a line each, by their path in the folder."""
    wrong = {name: _wrong(folder / name, own) for name, own in files.items()}
    return {name: f"{name} {reason}" for name, reason in wrong.items() if reason}


def _wrong(path: Path, was: Mapping[str, Any]) -> str:
    try:
        size = path.stat().st_size
        if size != was["bytes"]:
            return f"has {size:,} of {was['bytes']:,} bytes" if size < was["bytes"] else "has grown"
        if "sha256" in was and _checksum(path) != was["sha256"]:
            return "is damaged (checksum)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return ""


def _checksum(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
