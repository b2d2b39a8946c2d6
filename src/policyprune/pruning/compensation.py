"""What makes up for the pruned units: changes of the output projections of the kept ones."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from policyprune.models.layerwise import columns_of, projection
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import Key


@dataclass(frozen=True)
class Compensation:
    """Changes that `shrink` applies, all in float32 on the CPU, by (layer, kind) of the block.

    `scales` (n,), 0 where a unit is pruned, multiply the columns of the kept units. `weights` (d, kept features) take
    the place of the kept columns. `biases` (d,) are added to the output projection's bias, which is made where the
    family has none. No tuning gives both scales and weights.
    """

    scales: Tensor | None = None
    weights: dict[Key, Tensor] = field(default_factory=dict)
    biases: dict[Key, Tensor] = field(default_factory=dict)


def part(compensation: Compensation, share: float, prunable: PrunableModel, mask: Tensor) -> Compensation:
    """Scales and weights moved from those of the dense model by `share` of what the compensation moves them."""
    binary = mask.float().cpu()
    scales = None if compensation.scales is None else torch.lerp(binary, compensation.scales.float().cpu(), share)
    weights = {
        key: torch.lerp(kept_weight(prunable, key, mask), weight, share) for key, weight in compensation.weights.items()
    }
    return Compensation(scales, weights, compensation.biases)


def carried_over(
    compensation: Compensation, source: PrunableModel, target: PrunableModel, mask: Tensor
) -> Compensation:
    """The compensation for `target`, whose weights are those of `source` before these were rounded."""
    weights = {
        key: weight + (kept_weight(target, key, mask) - kept_weight(source, key, mask))
        for key, weight in compensation.weights.items()
    }
    return Compensation(compensation.scales, weights, compensation.biases)


def kept_weight(prunable: PrunableModel, key: Key, mask: Tensor) -> Tensor:
    """Weight (d, features) float32 on the CPU of a block's output projection, for the units that mask (n,) keeps."""
    block = prunable.blocks[key]
    columns = columns_of(block, prunable.views(mask)[key].nonzero().flatten())
    return projection(prunable.model, block)[0][:, columns.to(prunable.device)].float().cpu()
