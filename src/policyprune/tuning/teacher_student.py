"""A pruned student and its dense teacher, side by side, one block after the other."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from policyprune.models.adapter import Block
from policyprune.models.layerwise import columns_of, projection, walk, watch
from policyprune.pruning.compensation import Compensation
from policyprune.pruning.prunable import PrunableModel

Batch = dict[str, Tensor]  # arguments of the model's forward: token ids (B, T), attention mask (B, T), ...
Report = list[dict[str, Any]]  # a row for each block: layer, kind, outcome, error, binary_error
Fitted = tuple[Compensation, Report]


@dataclass(frozen=True)
class BlockTask:
    """A block that can be fitted: its kept units (k,), which input features they have, their weight (d, features).

    `samples` are, batch by batch, the student's inputs (tokens, features) of the output projection and what it should
    make of them without its bias: the teacher's outputs (tokens, d), plus, where a norm takes the sum of residual and
    output, what the student's residual lacks of the teacher's. They can be read once.

    Where norms stand before the blocks, both are divided by the root mean square of the teacher's residual behind the
    layer, as the next norm divides: an error counts relative to what it is added to. Without that a token with
    massive activations is nearly all of the least-squares problem of the blocks that make and unmake these.
    """

    block: Block
    kept: Tensor
    columns: Tensor
    weight: Tensor
    bias: Tensor | None
    samples: Iterator[tuple[Tensor, Tensor]]


@torch.no_grad()
def block_tasks(
    prunable: PrunableModel, mask: Tensor, batches: list[Batch], prune: Callable[[bool], None], first_token: bool
) -> Iterator[BlockTask]:
    """Yield the blocks that keep units, in order. What the caller fits shows in the student's inputs of the next one.

    `prune(True)` makes the model the student as fitted so far, `prune(False)` the dense teacher. Padding is left out;
    with `first_token` the last layer is about the first token alone, since a classifier looks at no other.
    """
    model, adapter, views = prunable.model, prunable.adapter, prunable.views(mask)
    last = len(adapter.layers) - 1
    prune(False)
    teacher_layers = walk(model, adapter, batches, first_token)
    teacher = next(teacher_layers)
    student_layers = walk(model, adapter, batches, first_token)
    student = next(student_layers)

    def samples(block: Block, columns: Tensor, bias: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        seen = watch(model, student, _watched(block), final=False)
        for passed, target, weight in zip(seen, targets[block.out], weights, strict=True):
            x, out = passed[block.out]
            wanted = target - (_reached(passed, block) - out) - (0.0 if bias is None else bias)
            factor = 1.0 if block.norm else weight.to(x.device)
            yield x[:, columns] * factor, wanted * factor

    for index in range(len(adapter.layers)):
        kinds = [kind for kind in ("attention", "ffn") if (index, kind) in views and views[index, kind].any()]
        prune(False)
        blocks = [prunable.blocks[index, kind] for kind in kinds]
        targets: dict[str, list[Tensor]] = {block.out: [] for block in blocks}
        for passed in watch(model, teacher, [name for block in blocks for name in _watched(block)], final=True):
            for block in blocks:
                targets[block.out].append(_reached(passed, block))
        weights = [_weight(out) for out in teacher.counted(teacher.produced or [])]
        for kind in kinds:
            block, kept = prunable.blocks[index, kind], views[index, kind].nonzero().flatten()
            columns = columns_of(block, kept).to(model.device)
            weight, bias = projection(model, block)
            prune(True)
            yield BlockTask(block, kept, columns, weight[:, columns], bias, samples(block, columns, bias))
        if index < last:
            teacher = next(teacher_layers)
            prune(True)
            student = next(student_layers)


def _weight(residual: Tensor) -> Tensor:
    """1 over the root mean square of each token of a residual (tokens, d): (tokens, 1)."""
    return residual.float().square().mean(-1, keepdim=True).clamp(min=1e-12).rsqrt().to(residual.dtype)


def _watched(block: Block) -> list[str]:
    return [block.out, block.norm] if block.norm else [block.out]


def _reached(passed: dict[str, tuple[Tensor, Tensor]], block: Block) -> Tensor:
    """What a norm takes behind a block, residual and output (tokens, d); the output alone where there is none.

    `passed` holds what went in and came out of the watched modules, by name.
    """
    return passed[block.norm][0] if block.norm else passed[block.out][1]
