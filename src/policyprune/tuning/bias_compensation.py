"""FLAP's compensation (An et al., AAAI 2024): what the removed units give on average becomes a bias."""

import torch
from torch import Tensor

from policyprune.models.layerwise import columns_of, projection, walk, watch
from policyprune.pruning.compensation import Compensation
from policyprune.pruning.prunable import PrunableModel
from policyprune.tuning.teacher_student import Fitted, Lesson


@torch.no_grad()
def compensate(prunable: PrunableModel, mask: Tensor, lesson: Lesson) -> Fitted:
    """A bias (d,) for each block that loses units of mask (n,): W mean(X) over their columns, and a report.

    X are the inputs in the dense model. The errors are what the block's output loses of the dense one when its inputs
    are still the dense ones.
    """
    model, views = prunable.model, prunable.views(mask)
    biases, report = {}, []
    for layer in walk(model, prunable.adapter, lesson.batches, lesson.first_token):
        pruned = {key for key, view in views.items() if key[0] == layer.index and not view.all()}
        blocks = [block for block in prunable.adapter.blocks if (block.layer, block.kind) in pruned]
        lost = {b.out: columns_of(b, (~views[b.layer, b.kind]).nonzero().flatten()).to(model.device) for b in blocks}
        weights = {b.out: projection(model, b)[0][:, lost[b.out]].double() for b in blocks}
        tokens = 0
        sums: dict[str, Tensor | float] = dict.fromkeys(lost, 0.0)
        energy = dict.fromkeys(lost, 0.0)
        for rows, seen in zip(layer.token_masks, watch(model, layer, list(lost), final=True), strict=True):
            tokens += int(rows.sum())
            for name, (x, _) in seen.items():
                output = x[:, lost[name]].double() @ weights[name].T
                sums[name] = sums[name] + output.sum(0)
                energy[name] += float(output.square().sum())
        for block in blocks:
            mean = torch.as_tensor(sums[block.out]) / tokens
            biases[block.layer, block.kind] = mean.float().cpu()
            error = energy[block.out] - tokens * float(mean.square().sum())
            where = {"layer": block.layer, "kind": block.kind}
            report.append({**where, "outcome": "compensated", "error": error, "binary_error": energy[block.out]})
    return Fitted(mask, Compensation(biases=biases), report)
