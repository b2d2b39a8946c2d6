"""How much of a tuning is worn: the share that lowers the loss of sequences most that it was not fitted to."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.models.adapter import Adapter, Block
from policyprune.models.layerwise import columns_of, projection
from policyprune.pruning.compensation import Edits
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import Space
from policyprune.surgery.shrink import shrink

SHARES = (1.0, 0.5, 0.0)
HELD_OUT = 64  # sequences at most


def split(sequences: int, fitted: int) -> tuple[int, Tensor]:
    """How many rows a tuning is fitted to, the first `fitted`, and those that judge it: the next, `HELD_OUT` at most.

    Where fewer than an eighth as many follow, the last eighth of the fitted ones judges instead; none of one sequence.
    """
    fitted = min(fitted, sequences)
    judges = min(HELD_OUT, max(1, fitted // 8))
    cut = fitted if sequences - fitted >= judges else max(1, fitted - judges)
    return cut, torch.arange(cut, min(sequences, cut + HELD_OUT))


def choose(
    edits: Edits,
    model: PreTrainedModel,
    adapter: Adapter,
    space: Space,
    mask: Tensor,
    loss: Callable[[PreTrainedModel], float],
) -> tuple[Edits, float]:
    """The edits of the share in `SHARES` whose smaller model has the least loss (the largest of equals), and the share.

    A block's output is nearer to the dense one after a tuning; whether that is better for the loss shows only behind
    all blocks. Biases are worn as they are.
    """
    found = {}
    for share in SHARES:
        worn = part(edits, share, model, adapter, space, mask)
        value = loss(shrink(PrunableModel(model, adapter, space), mask, worn))
        found[share] = (value if math.isfinite(value) else math.inf, worn)
    best = min(SHARES, key=lambda share: found[share][0])
    return found[best][1], best


def part(edits: Edits, share: float, model: PreTrainedModel, adapter: Adapter, space: Space, mask: Tensor) -> Edits:
    """Scales and weights moved from those of the dense model by `share` of what the edits move them."""
    binary, blocks = mask.float().cpu(), {(block.layer, block.kind): block for block in adapter.blocks}
    scales = None if edits.scales is None else torch.lerp(binary, edits.scales.float().cpu(), share)
    weights = {}
    for key, new in edits.weights.items():
        weights[key] = torch.lerp(_kept(model, blocks[key], space.views(binary)[key]), new, share)
    return Edits(scales, weights, edits.biases)


def carried_over(
    edits: Edits, source: PreTrainedModel, model: PreTrainedModel, adapter: Adapter, space: Space, mask: Tensor
) -> Edits:
    """The edits for a model whose weights are those of `source` before these were rounded."""
    views, blocks = space.views(mask.cpu()), {(block.layer, block.kind): block for block in adapter.blocks}
    weights = {
        key: new + (_kept(model, blocks[key], views[key]) - _kept(source, blocks[key], views[key]))
        for key, new in edits.weights.items()
    }
    return Edits(edits.scales, weights, edits.biases)


def _kept(model: PreTrainedModel, block: Block, mask: Tensor) -> Tensor:
    """Weight (d, features) float32 on the CPU of a block's output projection for the units in mask (k,)."""
    columns = columns_of(block, mask.nonzero().flatten())
    return projection(model, block)[0][:, columns.to(model.device)].float().cpu()
