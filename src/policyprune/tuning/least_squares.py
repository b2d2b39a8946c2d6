"""Layer by layer, real-valued scales of the kept units that bring each block's output near the dense one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.config.schema import LeastSquares
from policyprune.models.adapter import Adapter
from policyprune.pruning.masking import Masking
from policyprune.pruning.space import Space
from policyprune.tuning.normal_equations import NormalEquations
from policyprune.tuning.teacher_student import lessons

Solver = Callable[[Tensor, Tensor, float, int], Tensor | None]


@torch.no_grad()
def tune(
    model: PreTrainedModel,
    adapter: Adapter,
    space: Space,
    mask: Tensor,
    batches: list[dict[str, Tensor]],
    config: LeastSquares,
    solver: Solver,
    first_token: bool,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Scales (n,) float32 of the units, 0 where mask (n,) is 0, and a report of each block.

    The inputs of a block are those that the already tuned layers before it produce, its target is the dense model's
    output of the same block (methods, section 5). Padding is left out; with `first_token` the last layer is fitted to
    the first token alone, since a classifier looks at no other. A block keeps its binary mask where the solver finds
    nothing finite, a scale is beyond +-limit or the error would grow; the other blocks are tuned all the same.
    """
    masking = Masking(adapter, space)
    scales = mask.float().cpu().clone()
    views = space.views(scales)
    report = []

    def prune(on: bool) -> None:
        masking.set(scales[None].to(model.device) if on else None)

    with masking.on(model):
        for lesson in lessons(model, adapter, space, mask, batches, prune, first_token):
            block, equations = lesson.block, NormalEquations(lesson.weight, lesson.block.width)
            for x, target in lesson.samples:
                equations.add(x, target)
            new, outcome = _fit(equations, len(lesson.kept), config, solver)
            views[block.layer, block.kind][lesson.kept] = new.float().cpu()
            report.append({"layer": block.layer, "kind": block.kind, **outcome})
    return scales, report


def _fit(
    equations: NormalEquations, count: int, config: LeastSquares, solver: Solver
) -> tuple[Tensor, dict[str, float | str]]:
    """Scales (count,) and what became of the block: solve (A^T A + damp I) r = A^T (b - A 1), scales 1 + r."""
    matrix, right = equations.system()
    ones = torch.ones_like(right)
    damped = matrix + config.damp * matrix.diagonal().mean() * torch.eye(
        count, dtype=matrix.dtype, device=matrix.device
    )
    r = solver(damped, right - matrix @ ones, config.tolerance, config.iterations)
    before = equations.error(ones)
    if r is None or not bool(r.isfinite().all()):
        return ones, {"outcome": "no solution", "error": before, "binary_error": before}
    if float((1 + r).abs().max()) > config.limit:
        return ones, {"outcome": "beyond the limit", "error": before, "binary_error": before}
    after = equations.error(1 + r)
    if not after <= before:
        return ones, {"outcome": "no gain", "error": before, "binary_error": before}
    return 1 + r, {"outcome": "tuned", "error": after, "binary_error": before}
