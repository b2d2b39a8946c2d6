"""A mask on disk, and what it keeps."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from policyprune.files import write_file
from policyprune.pruning.edits import Edits
from policyprune.pruning.space import Group, Space

FILE = "mask.safetensors"  # in a run's folder


def save_mask(path: Path, mask: Tensor, space: Space, probabilities: Tensor, edits: Edits | None = None) -> None:
    """Write mask, keep probabilities and, where it was tuned, the edits as named tensors, atomically."""
    tensors = {f"{kind}.{layer}": view.clone() for (layer, kind), view in space.views(mask.bool().cpu()).items()}
    for (layer, kind), view in space.views(probabilities.float().cpu()).items():
        tensors[f"{kind}.{layer}.probability"] = view.clone()
    tensors |= edits.tensors(space) if edits is not None else {}
    with write_file(path) as scratch:
        save_file(tensors, scratch, metadata={"format": "policyprune-mask-1"})


def load_mask(path: Path) -> tuple[Space, Tensor]:
    """Read a mask file back: the space that it was made for, in order, and the mask (n,) bool."""
    with safe_open(path, framework="pt") as file:
        names = [name.split(".") for name in file.keys() if name.count(".") == 1]  # noqa: SIM118
        keys = sorted(((int(layer), kind) for kind, layer in names), key=lambda key: (key[0], key[1]))
        views = [file.get_tensor(f"{kind}.{layer}") for layer, kind in keys]
    space = Space(tuple(Group(layer, kind, len(v)) for (layer, kind), v in zip(keys, views, strict=True)))
    return space, torch.cat(views)


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
