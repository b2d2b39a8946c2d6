"""A mask on disk, with the compensation that belongs to it, in a safetensors file that knows whether it is whole."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from policyprune.errors import UsageError
from policyprune.pruning.compensation import Compensation
from policyprune.pruning.space import Group, Key, Space
from policyprune.storage.files import write_file

FORMAT = "policyprune-mask-1"
CHECKSUM = " sha256:"  # in one piece of metadata with the format: safetensors writes several in any order
MASK_NAME = re.compile(r"([^.\d]+)\.(\d+)")  # of a block's mask: kind.layer


def save_mask(
    path: Path, mask: Tensor, space: Space, probabilities: Tensor, compensation: Compensation | None = None
) -> None:
    """Write mask (n,), keep probabilities (n,) and, where it was tuned, the compensation, atomically."""
    tensors = {f"{kind}.{layer}": view for (layer, kind), view in space.views(mask.bool().cpu()).items()}
    for (layer, kind), view in space.views(probabilities.float().cpu()).items():
        tensors[f"{kind}.{layer}.probability"] = view
    tensors |= _named(compensation, space) if compensation is not None else {}
    arrays = {name: tensor.clone().numpy() for name, tensor in tensors.items()}
    with write_file(path) as scratch:
        save_file(arrays, scratch, metadata={"format": f"{FORMAT}{CHECKSUM}{_checksum(arrays)}"})


def load_mask(path: Path, key: str = "mask") -> tuple[Space, Tensor]:
    """Read a mask file back: the space that it was made for, in order, and the mask (n,) bool.

    UsageError, which begins with `key`, for a file that is damaged or no mask.
    """
    arrays = _read(path, key)
    masks = {(int(named[2]), named[1]): array for name, array in arrays.items() if (named := MASK_NAME.fullmatch(name))}
    if not masks or not all(array.dtype == bool and array.ndim == 1 and array.size for array in masks.values()):
        raise UsageError(f"{key}: {str(path)!r} holds no mask")
    keys = sorted(masks)
    space = Space(tuple(Group(layer, kind, len(masks[layer, kind])) for layer, kind in keys))
    return space, torch.cat([torch.tensor(masks[block]) for block in keys])


def load_compensation(path: Path, space: Space) -> Compensation | None:
    """The compensation in a mask file over `space`; None where nothing was tuned."""
    tensors: dict[str, dict[Key, Tensor]] = {"scale": {}, "weight": {}, "bias": {}}
    for name, array in _read(path).items():
        kind, layer, *last = name.split(".")
        if last and last[0] in tensors:
            tensors[last[0]][int(layer), kind] = torch.tensor(array)
    if not any(tensors.values()):
        return None
    scales = None
    if tensors["scale"]:
        scales = torch.cat([tensors["scale"][group.layer, group.kind] for group in space.groups])
    return Compensation(scales, tensors["weight"], tensors["bias"])


def keep_rates(mask: Tensor, space: Space) -> list[dict[str, int | str | float]]:
    """Rows of layer, kind, kept, count and rate, in the order of the space."""
    return [
        {
            "layer": layer,
            "kind": kind,
            "kept": int(view.sum()),
            "count": view.numel(),
            "rate": float(view.double().mean()),
        }
        for (layer, kind), view in space.views(mask).items()
    ]


def _named(compensation: Compensation, space: Space) -> dict[str, Tensor]:
    """Its tensors under the names that they have in the file."""
    scales = space.views(compensation.scales.float().cpu()) if compensation.scales is not None else {}
    groups = {"scale": scales, "weight": compensation.weights, "bias": compensation.biases}
    return {
        f"{kind}.{layer}.{name}": tensor
        for name, tensors in groups.items()
        for (layer, kind), tensor in tensors.items()
    }


def _read(path: Path, key: str = "mask") -> dict[str, "np.ndarray"]:
    """Read the arrays back; UsageError, which begins with `key`, for what is no whole file of this format.

    Files of older versions have no checksum and are taken as they are.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            stated, _, checksum = (file.metadata() or {}).get("format", "").partition(CHECKSUM)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise UsageError(f"{key}: {str(path)!r} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError, TypeError) as error:
        raise UsageError(f"{key}: {str(path)!r} is damaged or no {FORMAT} ({' '.join(str(error).split())})") from error
    if stated != FORMAT:
        raise UsageError(f"{key}: {str(path)!r} is no {FORMAT}")
    if checksum and checksum != _checksum(arrays):
        raise UsageError(f"{key}: {str(path)!r} is damaged (checksum), take another copy or run it again")
    return arrays


def _checksum(arrays: dict[str, "np.ndarray"]) -> str:
    """Over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
