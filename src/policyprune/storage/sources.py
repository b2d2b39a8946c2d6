"""What a source string stands for, and whether a checkpoint on this disk is whole. Imports no torch.

A source is a hub id, a local path, or `pkg://package/path` inside an installed package. Of a GGUF file in parts it is
all of them, in order, with spaces between: `a/x.gguf.part00 a/x.gguf.part01`.
"""

import hashlib
import importlib.util
import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

from policyprune.errors import UsageError
from policyprune.storage.files import cache_folder, made_once, write_file

PACKAGE = "pkg://"
HUB = re.compile(r"([\w-][\w.-]*(/[\w-][\w.-]*)?|[\w.-]+/[\w.-]+/.+\.gguf)", re.ASCII)
PARTS = re.compile(r"\S+\.gguf\.part\d+(\s+\S+\.gguf\.part\d+)+")
POINTER = b"version https://git-lfs"
GGUF = b"GGUF"
WHOLE = ("model.safetensors", "pytorch_model.bin")  # in the order that transformers looks for them,
INDEX = "{name}.index.json"  # and each before the list of its parts
SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
FLOATS = ("F64", "F32", "F16", "BF16")
WEIGHT = re.compile(r"(^|\.)(weight|bias)$")


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
        raise UsageError(f"{key}: {source!r} needs the package {package!r}, install it (requirements/ has it)")
    path = Path(spec.submodule_search_locations[0]) / inside
    if not path.exists():
        raise UsageError(f"{key}: {source!r} names no file of the package {package!r}")
    return path


def locate_model(source: str) -> Path | None:
    """The same for a model, which lies on the hub where it lies on no disk; UsageError where it can lie on neither.

    A file in parts is joined, once, in the user's cache folder.
    """
    if PARTS.fullmatch(source):
        return _joined(_parts(source))
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
    if PARTS.fullmatch(source):
        _parts(source)
        return
    path = locate_model(source)
    if path is not None:
        check_model(source, path, weights)


def _parts(source: str) -> list[Path]:
    """The files of a model in parts; UsageError for one that is not there."""
    paths = []
    for part in source.split():
        path = locate("model.source", part)
        if path is None:
            raise UsageError(f"model.source: {part!r} does not exist, which is a part of a file")
        paths.append(path)
    return paths


def _joined(parts: list[Path]) -> Path:
    """The whole file; a new one where a part has changed."""
    states = [(str(part.resolve()), part.stat().st_size, part.stat().st_mtime_ns) for part in parts]
    identity = hashlib.sha256(json.dumps(states).encode()).hexdigest()[:12]
    stem = parts[0].name.partition(".gguf.part")[0]

    def join(target: Path) -> None:
        with write_file(target) as scratch, scratch.open("wb") as whole:
            for part in parts:
                with part.open("rb") as file:
                    shutil.copyfileobj(file, whole)

    return made_once(cache_folder() / "joined" / f"{stem}-{identity}.gguf", join)


def check_model(source: str, path: Path, weights: bool = True) -> None:
    """UsageError for a file that is no GGUF file, a folder that is no checkpoint, and one whose files are not whole.

    `weights`: whether they have to be there, a config alone tells much already.
    """
    try:
        if path.is_file():
            _check_gguf(path)
        else:
            _check_folder(path)
            if weights or has_weights(path):
                _check_weights(path)
    except OSError as error:
        file_name = f"{Path(error.filename).name}: " if error.filename and Path(error.filename) != path else ""
        raise UsageError(f"model.source: {source!r} cannot be read: {file_name}{error.strerror}") from error
    except _WrongError as error:
        raise UsageError(f"model.source: {source!r} {error}") from error


def has_weights(folder: Path) -> bool:
    """Whether there is a file that transformers takes weights from, or names such files."""
    return any((folder / name).exists() or (folder / INDEX.format(name=name)).exists() for name in WHOLE)


def _weight_files(folder: Path) -> list[Path]:
    for name in WHOLE:
        if (folder / name).exists():
            return [folder / name]
        index = folder / INDEX.format(name=name)
        if index.exists():
            try:
                return [folder / part for part in sorted(set(_json_object(index)["weight_map"].values()))]
            except (KeyError, AttributeError, TypeError) as error:
                raise _WrongError(f"has a {index.name} without a weight_map") from error
    return []


class _WrongError(Exception):
    """What is wrong with a file or folder, as the end of a sentence that begins with its name."""


def _check_gguf(path: Path) -> None:
    if path.suffix != ".gguf":
        raise _WrongError("is a file, name the folder with its config.json, or a .gguf file")
    with path.open("rb") as file:
        start = file.read(len(POINTER))
    if start == POINTER:
        raise _WrongError("is a pointer of git-lfs and not the file itself, `git lfs pull` fetches it")
    if not start.startswith(GGUF):
        raise _WrongError("is no GGUF file")


def _check_folder(folder: Path) -> None:
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    names = {path.name for path in files}
    if "adapter_config.json" in names:
        raise _WrongError("holds a LoRA adapter, merge the adapter first (peft: merge_and_unload) and save all of it")
    if "config.json" not in names:
        raise _WrongError("holds no config.json, it is no checkpoint of transformers")
    for path in files:
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise _WrongError(f"holds a pointer of git-lfs in place of {path.name}, `git lfs pull` fetches it")
    for name in SETTINGS:
        if name in names:
            _json_object(folder / name)


def _check_weights(folder: Path) -> None:
    files = _weight_files(folder)
    if not files:
        raise _WrongError(f"holds no weights: neither {' nor '.join(WHOLE)}")
    for path in files:
        if not path.exists():
            raise _WrongError(f"lacks {path.name}, which its index names")
        if path.suffix == ".safetensors":
            size = path.stat().st_size
            stated_size, dtypes = _header(path, size)
            if stated_size != size:
                raise _WrongError(f"has a broken {path.name}: {size:,} bytes of {stated_size:,}")
            odd = {name: dtype for name, dtype in dtypes.items() if WEIGHT.search(name) and dtype not in FLOATS}
            if odd and "quantization_config" not in _json_object(folder / "config.json"):
                name, dtype = next(iter(odd.items()))
                raise _WrongError(f"holds {name} as {dtype}, and no quantization_config says how that is read")


def _header(path: Path, size: int) -> tuple[int, dict[str, str]]:
    """The bytes that a safetensors file has by its own header, and the types of its tensors."""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= size - 8:
            raise _WrongError(f"has a broken {path.name}: its {size:,} bytes hold no header")
        try:
            header = json.loads(file.read(length))
            tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
            ends = [tensor["data_offsets"][1] for tensor in tensors.values()]
            dtypes = {name: str(tensor["dtype"]) for name, tensor in tensors.items()}
            return int(8 + length + max(ends, default=0)), dtypes
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise _WrongError(f"has a broken {path.name}: its header cannot be read") from error


def _json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _WrongError(f"has a {path.name} that is no JSON") from error
    if not isinstance(content, dict):
        raise _WrongError(f"has a {path.name} that holds no keys and values")
    return content
