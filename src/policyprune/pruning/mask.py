"""A mask on disk, and what it keeps."""

import re
from pathlib import Path

import torch
from torch import Tensor

from policyprune.errors import UsageError
from policyprune.pruning.compensation import FORMAT, Edits
from policyprune.pruning.space import Group, Space
from policyprune.storage.sealed import read_sealed, write_sealed

FILE = "mask.safetensors"  # in a run's folder
UNITS = re.compile(r"([^.\d]+)\.(\d+)")  # of a block's mask: kind.layer


def save_mask(path: Path, mask: Tensor, space: Space, probabilities: Tensor, edits: Edits | None = None) -> None:
    """Write mask, keep probabilities and, where it was tuned, the edits as named tensors, atomically."""
    tensors = {f"{kind}.{layer}": view.clone() for (layer, kind), view in space.views(mask.bool().cpu()).items()}
    for (layer, kind), view in space.views(probabilities.float().cpu()).items():
        tensors[f"{kind}.{layer}.probability"] = view.clone()
    tensors |= edits.tensors(space) if edits is not None else {}
    write_sealed(path, {name: tensor.numpy() for name, tensor in tensors.items()}, FORMAT)


def load_mask(path: Path, key: str = "mask") -> tuple[Space, Tensor]:
    """Read a mask file back: the space that it was made for, in order, and the mask (n,) bool.

    UsageError, which begins with `key`, for a file that is damaged or no mask.
    """
    arrays = read_sealed(path, FORMAT, key)
    found = {(int(named[2]), named[1]): own for name, own in arrays.items() if (named := UNITS.fullmatch(name))}
    if not found or not all(own.dtype == bool and own.ndim == 1 and own.size for own in found.values()):
        raise UsageError(f"{key}: {str(path)!r} holds no mask")
    keys = sorted(found)
    space = Space(tuple(Group(layer, kind, len(found[layer, kind])) for layer, kind in keys))
    return space, torch.cat([torch.tensor(found[own]) for own in keys])


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
