"""Block Influence (Men et al., ShortGPT, 2024, section 3.2): how much a layer turns the hidden states that pass it."""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from policyprune.models.layerwise import walk
from policyprune.pruning.importance.evidence import Evidence


@torch.no_grad()
def score(evidence: Evidence) -> Tensor:
    """Scores (n,) float32 on the CPU: a layer's influence in equal parts on its units, so that they add up to it.

    The influence is 1 minus the mean over all tokens but padding of the cosine similarity between the layer's input and
    output in the dense model.
    """
    influence: list[float] = []
    for layer in walk(evidence.model, evidence.adapter, evidence.batches()):
        layer.produced = layer.outputs()
        pairs = zip(layer.counted(layer.hidden), layer.counted(layer.produced), strict=True)
        alike = [cosine_similarity(before.double(), after.double()) for before, after in pairs]
        influence.append(1 - float(torch.cat(alike).mean()))
    units = [sum(group.count for group in evidence.space.groups if group.layer == i) for i in range(len(influence))]
    return torch.cat(
        [torch.full((group.count,), influence[group.layer] / units[group.layer]) for group in evidence.space.groups]
    )
