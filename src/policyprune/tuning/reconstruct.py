"""Layer by layer, new output projections of the kept units that bring each block's output near the dense one."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from policyprune.config.schema import Reconstruct
from policyprune.models.adapter import Adapter
from policyprune.pruning.compensation import Edits
from policyprune.pruning.masking import Masking
from policyprune.pruning.space import Space
from policyprune.tuning.ridge import Ridge
from policyprune.tuning.teacher_student import Lesson, lessons

HELD_OUT = 4  # one token of so many judges the ridge


@torch.no_grad()
def reconstruct(
    model: PreTrainedModel,
    adapter: Adapter,
    space: Space,
    mask: Tensor,
    batches: list[dict[str, Tensor]],
    config: Reconstruct,
    first_token: bool,
) -> tuple[Edits, list[dict[str, Any]]]:
    """New weights (d, kept features) of the output projections, and a report of each block.

    With X (tokens, features) what the already reconstructed student brings to an output projection W and Y its output
    in the dense model without the bias, W + D with the least ||X (W + D)^T - Y||^2 + r ||D||^2 takes the place of W. Of
    several `ridge` a block takes the one that, fitted to three quarters of the tokens, has the least error on the last
    quarter. It keeps its weights where there is no finite solution or the error, there or of all tokens, would grow.
    """
    masking = Masking(adapter, space)
    weights: dict[tuple[int, str], Tensor] = {}
    worn: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}  # columns, weight, bias
    report, pruned = [], False

    def prune(on: bool) -> None:
        nonlocal pruned
        pruned = on
        masking.set(mask.float()[None].to(model.device) if on else None)

    def wear(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
            if not pruned or name not in worn:
                return None
            columns, weight, bias = worn[name]
            return functional.linear(args[0][..., columns], weight, bias)

        return hook

    names = {block.out for block in adapter.blocks if block.count}
    with masking.on(model):
        handles = [model.get_submodule(name).register_forward_hook(wear(name)) for name in names]
        try:
            for lesson in lessons(model, adapter, space, mask, batches, prune, first_token):
                block = lesson.block
                new, outcome = _fit(lesson, config.ridge)
                if new is not None:
                    weights[block.layer, block.kind] = new.float().cpu()
                    worn[block.out] = lesson.columns, new.to(lesson.weight.dtype), lesson.bias
                report.append({"layer": block.layer, "kind": block.kind, **outcome})
        finally:
            for handle in handles:
                handle.remove()
    return Edits(weights=weights), report


def _fit(lesson: Lesson, ridges: list[float]) -> tuple[Tensor | None, dict[str, float | str]]:
    """The new weight (d, features) float64, None where the old one stays, and what became of the block."""
    most, rest = Ridge.of(lesson.weight), Ridge.of(lesson.weight)
    for x, target in lesson.samples:
        cut = len(x) - len(x) // HELD_OUT
        most.add(x[:cut], target[:cut])
        rest.add(x[cut:], target[cut:])
    tried = {ridge: weight for ridge in ridges if (weight := most.solve(ridge)) is not None}
    errors = {ridge: rest.error(weight) for ridge, weight in tried.items()}
    best = min(errors, key=lambda ridge: errors[ridge], default=None)
    gains = best is not None and errors[best] < rest.error(rest.weight)
    most += rest
    before = most.error(most.weight)
    kept: dict[str, float | str] = {"error": before, "binary_error": before}
    new = None if best is None else most.solve(best)
    if best is None or new is None:
        return None, {"outcome": "no solution", **kept}
    after = most.error(new)
    if not (gains and after < before):
        return None, {"outcome": "no gain", **kept}
    return new, {"outcome": "reconstructed", "error": after, "binary_error": before, "ridge": best}
