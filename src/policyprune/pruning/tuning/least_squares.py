"""Layer by layer, real-valued scales of the kept units that bring each block's output near the dense one."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from policyprune.config.schema import LeastSquares
from policyprune.models.adapter import Adapter, Block
from policyprune.pruning.layerwise import Layer, walk
from policyprune.pruning.masking import Masking
from policyprune.pruning.space import Space
from policyprune.pruning.tuning.normal_equations import NormalEquations

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
    student, dense = Masking(adapter, space), None
    scales = mask.float().cpu().clone()
    views = space.views(scales)
    blocks = {(block.layer, block.kind): block for block in adapter.blocks}
    report = []

    def wear(masks: Tensor | None) -> None:
        student.set(None if masks is None else masks[None].to(model.device))

    with student.on(model):
        wear(dense)
        teacher_layers = walk(model, adapter, batches)
        teacher = next(teacher_layers)
        student_layers = walk(model, adapter, batches)
        pupil = next(student_layers)
        last = len(adapter.layers) - 1
        for index in range(len(adapter.layers)):
            kinds = [kind for kind in ("attention", "ffn") if (index, kind) in views and views[index, kind].any()]
            wear(dense)
            targets = _dense_outputs(model, teacher, [blocks[index, kind] for kind in kinds])
            for kind in kinds:
                block, own = blocks[index, kind], views[index, kind]
                kept = own.nonzero().flatten()
                columns = (kept[:, None] * block.width + torch.arange(block.width)).flatten().to(model.device)
                weight, bias = _projection(model, block)
                equations = NormalEquations(weight[:, columns], block.width)
                wear(scales)
                for x, target, batch in zip(_inputs(model, pupil, block), targets[block.out], batches, strict=True):
                    rows = _rows(batch, first_token and index == last).flatten().to(x.device)
                    x, target = x.flatten(0, -2), target.flatten(0, -2)  # OPT's FFN has them flat already
                    equations.add(x[rows][:, columns], target[rows] - bias)
                new, outcome = _fit(equations, len(kept), config, solver)
                own[kept] = new.float().cpu()
                report.append({"layer": index, "kind": kind, **outcome})
            if index < last:
                teacher = next(teacher_layers)
                wear(scales)
                pupil = next(student_layers)
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


def _projection(model: nn.Module, block: Block) -> tuple[Tensor, Tensor | float]:
    """Weight (d, features) and bias of a block's output projection."""
    linear = model.get_submodule(block.out)
    weight, bias = linear.weight, linear.bias
    assert isinstance(weight, Tensor)
    return (weight.T if isinstance(linear, Conv1D) else weight), (bias if isinstance(bias, Tensor) else 0.0)


def _rows(batch: dict[str, Tensor], first_token: bool) -> Tensor:
    """Which tokens (B, T) count: not padding, or the first one alone."""
    mask = batch.get("attention_mask")
    rows = torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()
    if first_token:
        rows = rows.clone()
        rows[:, 1:] = False
    return rows


def _dense_outputs(model: nn.Module, layer: Layer, blocks: list[Block]) -> dict[str, list[Tensor]]:
    """Outputs (B, T, d) of the blocks' output projections, batch by batch; the layer's own are left in `produced`."""
    found: dict[str, list[Tensor]] = {block.out: [] for block in blocks}

    def hook(name: str) -> Callable[..., None]:
        return lambda module, args, out: found[name].append(out)

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in found]
    layer.produced = list(layer.outputs())
    for handle in handles:
        handle.remove()
    return found


def _inputs(model: nn.Module, layer: Layer, block: Block) -> Iterator[Tensor]:
    """Inputs (B, T, features) of a block's output projection, already masked, batch by batch."""
    held: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        held.append(args[0])

    handle = model.get_submodule(block.out).register_forward_hook(hook)
    try:
        for _ in layer.outputs():
            yield held.pop()
    finally:
        handle.remove()
