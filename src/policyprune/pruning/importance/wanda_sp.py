"""Wanda-sp (An et al., AAAI 2024): weight magnitude times input norm, summed over the columns of a unit."""

import torch
from torch import Tensor, nn

from policyprune.models.adapter import Block
from policyprune.models.layerwise import Layer, projection, walk, watch
from policyprune.pruning.importance.evidence import Evidence
from policyprune.pruning.masking import Masking


@torch.no_grad()
def score(evidence: Evidence) -> Tensor:
    """Scores (n,) float32 on the CPU: mean over rows i of |W_ij| * ||X_j||_2, summed over a unit's columns j.

    W is the output or down projection and X its input on all calibration tokens but padding. The layers are scored in
    order; after each, its worst `1 - keep` units are masked, so that the next layers see already pruned inputs
    (methods, section 3).
    """
    model, space = evidence.model, evidence.space
    masking = Masking(evidence.adapter, space)
    mask = torch.ones(1, space.n)
    views = space.views(mask[0])
    scores: dict[tuple[int, str], Tensor] = {}
    with masking.on(model):
        for layer in walk(model, evidence.adapter, evidence.batches()):
            blocks = [block for block in evidence.blocks() if block.layer == layer.index]
            for block, norms in zip(blocks, _input_norms(model, layer, blocks), strict=True):
                per_column = projection(model, block)[0].float().abs().mean(0) * norms
                unit = per_column.view(block.count, block.width).sum(1).cpu()
                scores[block.layer, block.kind] = unit
                worst = unit.argsort(stable=True)[: block.count - round(evidence.keep * block.count)]
                views[block.layer, block.kind][worst] = 0
            masking.set(mask)
    return torch.cat([scores[group.layer, group.kind] for group in space.groups])


def _input_norms(model: nn.Module, layer: Layer, blocks: list[Block]) -> list[Tensor]:
    """L2 norm over the tokens of each input feature of the blocks' output projections: (features,) float32 each."""
    squares: dict[str, Tensor | float] = {block.out: 0.0 for block in blocks}
    for seen in watch(model, layer, list(squares), final=False):
        for name, (x, _) in seen.items():
            squares[name] = squares[name] + x.float().square().sum(0)
    return [torch.as_tensor(squares[block.out]).sqrt() for block in blocks]
