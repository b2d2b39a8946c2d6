"""How the output of a block gets into the residual: as it is, times a number, or through a norm of its own.

With such a norm a block adds g * out / rms(out). To first order an error of the output counts by g / rms(out), but for
its part along the output, which the norm takes out.
"""

import torch
from torch import Tensor, nn

from policyprune.models.adapter import Block
from policyprune.models.layerwise import projection

DAMPING = 0.1  # of channels that a norm hardly lets through, relative to the mean square of its gains

Passed = dict[str, tuple[Tensor, Tensor]]  # what went in and came out of the watched modules, by name


def watched(block: Block) -> list[str]:
    """The modules of which `watch` has to tell: the output projection, and the norm behind it."""
    return [name for name in (block.out, block.norm, block.out_norm) if name]


def added(passed: Passed, block: Block) -> Tensor:
    """What a block adds to the residual (tokens, d)."""
    if block.out_norm:
        return passed[block.out_norm][1]
    out = passed[block.out][1]
    return out if block.multiplier == 1 else out * block.multiplier


def gain_of(model: nn.Module, block: Block) -> Tensor:
    """What each channel (d,) of a block's output is multiplied by on its way, float32 and never 0."""
    weight = projection(model, block)[0]
    ones = torch.ones(len(weight), device=weight.device)
    if not block.out_norm:
        return ones * block.multiplier
    gain: Tensor = model.get_submodule(block.out_norm)(ones).float()
    least = 1e-6 * gain.abs().max()
    return torch.where(gain.abs() < least, least, gain)


def token_weight(passed: Passed, block: Block, layer: str) -> Tensor:
    """How much each token of a block's output counts: (tokens, 1) float32, or 1 for all in front of a post-norm.

    1 over the root mean square of the residual behind the layer: an error counts relative to what it is added to, as
    the next norm divides. A norm of the block's own has divided by that of the output before.
    """
    weight = relative_weight(passed[layer][1])
    if block.norm:
        return torch.ones_like(weight)
    return weight * relative_weight(passed[block.out][1]) if block.out_norm else weight


def per_residual(passed: Passed, block: Block, gain: Tensor) -> Tensor | float:
    """What the output has to change by for the residual to change by 1, (tokens, d) where a norm stands between.

    Damped there: through a channel of a small gain the output would become large, and all other channels smaller.
    """
    if not block.out_norm:
        return 1 / block.multiplier
    return gain / (gain.square() + DAMPING * gain.square().mean()) / relative_weight(passed[block.out][1])


def relative_weight(states: Tensor) -> Tensor:
    """1 over the root mean square of each token of states (tokens, d): (tokens, 1) float32."""
    return states.float().square().mean(-1, keepdim=True).clamp(min=1e-12).rsqrt()
