"""Layer by layer, new output projections of the kept units that bring each block's output near the dense one."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from policyprune.pruning.compensation import Compensation
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.second_order.least_squares import LeastSquares
from policyprune.pruning.space import Key
from policyprune.tuning.teacher_student import BlockTask, Fitted, Lesson, block_tasks

HELD_OUT = 4  # one token of so many judges the ridge


@torch.no_grad()
def reconstruct(prunable: PrunableModel, mask: Tensor, lesson: Lesson, ridges: list[float], residual: float) -> Fitted:
    """New weights (d, kept features) of the output projections, and a report of each block.

    With X (tokens, features) what the already reconstructed student brings to an output projection W and Y its output
    in the dense model without the bias, plus `residual` times what the student's residual lacks, W + D with the least
    ||X (W + D)^T - Y||^2 + r ||D||^2 takes the place of W. Of several `ridges` a block takes the one that, fitted to
    three quarters of the tokens, has the least error on the last quarter. It keeps its weights where there is no finite
    solution or the error, there or of all tokens, would grow.
    """
    weights: dict[Key, Tensor] = {}
    replaced: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}  # kept columns, new weight, bias, by module
    report, pruned = [], False

    def replace(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
            if not pruned or name not in replaced:
                return None
            columns, weight, bias = replaced[name]
            return functional.linear(args[0][..., columns], weight, bias)

        return hook

    names = {block.out for block in prunable.adapter.blocks if block.count}
    with prunable.masking() as masking:

        def prune(on: bool) -> None:
            nonlocal pruned
            pruned = on
            masking.set(mask.float()[None].to(prunable.device) if on else None)

        handles = [prunable.model.get_submodule(name).register_forward_hook(replace(name)) for name in names]
        try:
            for task in block_tasks(prunable, mask, lesson, prune, residual):
                block = task.block
                fitted, outcome = _fit(task, ridges)
                if fitted is not None:
                    weights[block.layer, block.kind] = fitted.float().cpu()
                    replaced[block.out] = task.columns, fitted.to(task.weight.dtype), task.bias
                report.append({"layer": block.layer, "kind": block.kind, **outcome})
        finally:
            for handle in handles:
                handle.remove()
    return Compensation(weights=weights), report


def _fit(task: BlockTask, ridges: list[float]) -> tuple[Tensor | None, dict[str, float | str]]:
    """The new weight (d, features) float64, None where the old one stays, and what became of the block."""
    fitted, held_out = LeastSquares.of(task.weight), LeastSquares.of(task.weight)
    for x, target in task.samples:
        cut = len(x) - len(x) // HELD_OUT
        fitted.add(x[:cut], target[:cut])
        held_out.add(x[cut:], target[cut:])
    tried = {ridge: weight for ridge in ridges if (weight := fitted.solve(ridge)) is not None}
    errors = {ridge: held_out.error(weight) for ridge, weight in tried.items()}
    best = min(errors, key=lambda ridge: errors[ridge], default=None)
    gains = best is not None and errors[best] < held_out.error(held_out.weight)
    fitted += held_out
    before = fitted.error(fitted.weight)
    kept: dict[str, float | str] = {"error": before, "binary_error": before}
    new = None if best is None else fitted.solve(best)
    if best is None or new is None:
        return None, {"outcome": "no solution", **kept}
    after = fitted.error(new)
    if not (gains and after < before):
        return None, {"outcome": "no gain", **kept}
    return new, {"outcome": "reconstructed", "error": after, "binary_error": before, "ridge": best}
