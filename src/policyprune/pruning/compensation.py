"""What a tuning changes in the output projections of the kept units."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from policyprune.pruning.space import Key, Space
from policyprune.storage.sealed import read_sealed

FORMAT = "policyprune-mask-1"  # of the file that holds a mask and its edits


@dataclass(frozen=True)
class Edits:
    """Changes that `shrink` applies, all in float32 on the CPU, by (layer, kind) of the block.

    `scales` (n,), 0 where a unit is pruned, multiply the columns of the kept units. `weights` (d, kept features) take
    the place of the kept columns. `biases` (d,) are added to the output projection's bias, which is made where the
    family has none. No tuning gives both scales and weights.
    """

    scales: Tensor | None = None
    weights: dict[Key, Tensor] = field(default_factory=dict)
    biases: dict[Key, Tensor] = field(default_factory=dict)

    def tensors(self, space: Space) -> dict[str, Tensor]:
        """The changes under the names that they have in a mask file."""
        scales = space.views(self.scales.float().cpu()) if self.scales is not None else {}
        named = {"scale": scales, "weight": self.weights, "bias": self.biases}
        return {
            f"{kind}.{layer}.{name}": tensor.clone()
            for name, tensors in named.items()
            for (layer, kind), tensor in tensors.items()
        }


def load_edits(path: Path, space: Space) -> Edits | None:
    """The changes in a mask file over `space`; None where nothing was tuned."""
    found: dict[str, dict[Key, Tensor]] = {"scale": {}, "weight": {}, "bias": {}}
    for name, array in read_sealed(path, FORMAT).items():
        kind, layer, *last = name.split(".")
        if last and last[0] in found:
            found[last[0]][int(layer), kind] = torch.tensor(array)
    if not any(found.values()):
        return None
    scales = torch.cat([found["scale"][group.layer, group.kind] for group in space.groups]) if found["scale"] else None
    return Edits(scales, found["weight"], found["bias"])
