"""A pruned student and its dense teacher, side by side, one block after the other."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from policyprune.models.adapter import Block
from policyprune.models.layerwise import columns_of, projection, relative_weight, walk, watch
from policyprune.pruning.compensation import Compensation
from policyprune.pruning.prunable import PrunableModel
from policyprune.tasks.task import CalibrationData

ROUNDING = 0.02  # relative, of sums in bfloat16

Passed = dict[str, tuple[Tensor, Tensor]]  # what went in and came out of the watched modules, by name
Batch = dict[str, Tensor]  # arguments of the model's forward: token ids (B, T), attention mask (B, T), ...
Report = list[dict[str, Any]]  # a row for each block: layer, kind, outcome, error, binary_error


@dataclass(frozen=True)
class Fitted:
    """What a tuning makes of a mask: one (n,) of the same widths, what changes in its kept units, a row per block."""

    mask: Tensor
    compensation: Compensation
    report: Report


@dataclass(frozen=True)
class BlockTask:
    """A block that can be fitted: its kept units (k,), which input features they have, their weight (d, features).

    `samples` are, batch by batch, the student's inputs (tokens, features) of the output projection and what it should
    make of them without its bias: the teacher's outputs (tokens, d), plus what the student's residual in front of the
    block lacks of the teacher's: all of it where a norm takes the sum of residual and output, else a share of it. They
    can be read once.

    Where norms stand before the blocks, both are divided by the root mean square of the residual behind the layer, as
    the next norm divides: an error counts relative to what it is added to. Without that a token with massive
    activations is nearly all of the least-squares problem of the blocks that make and unmake these. Of the teacher's
    and the student's residual it is the larger one, for a student may have such activations where its teacher has none.
    """

    block: Block
    kept: Tensor
    columns: Tensor
    weight: Tensor
    bias: Tensor | None
    samples: Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Lesson:
    """What a student is taught from: batches of the model's inputs, without their padding.

    With `first_token` the last layer is about the first token alone, since a classifier looks at no other. The batches
    are the sequences `rows` (B,) of `data`, of which `held_out` (H,) are others, for those that look at more than that.
    """

    batches: list[Batch]
    first_token: bool = False
    rows: list[Tensor] = field(default_factory=list)
    held_out: Tensor = field(default_factory=lambda: torch.arange(0))
    data: CalibrationData | None = None


@torch.no_grad()
def block_tasks(
    prunable: PrunableModel, mask: Tensor, lesson: Lesson, prune: Callable[[bool], None], residual: float = 0.0
) -> Iterator[BlockTask]:
    """Yield the blocks that keep units, in order. What the caller fits shows in the student's inputs of the next one.

    `prune(True)` makes the model the student as fitted so far, `prune(False)` the dense teacher. `residual` is the
    share of what the student's residual lacks that a block is to make up for; it is 0 in layers that norm or scale what
    they add.
    """
    model, adapter, views = prunable.model, prunable.adapter, prunable.views(mask)
    last = len(adapter.layers) - 1
    prune(False)
    teacher_layers = walk(model, adapter, lesson.batches, lesson.first_token)
    teacher = next(teacher_layers)
    student_layers = walk(model, adapter, lesson.batches, lesson.first_token)
    student = next(student_layers)

    def samples(block: Block, columns: Tensor, bias: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        path = adapter.layers[block.layer]
        seen = watch(model, student, [path, *_watched(block)], final=False)
        for passed, aim, weight in zip(seen, aims[block.out], weights, strict=True):
            x, out = passed[block.out]
            wanted = aim - (_reached(passed, block) - out) - (0.0 if bias is None else bias)
            if share:
                wanted -= share * _before(passed, block, path)
            factor = 1.0 if block.norm else torch.minimum(weight.to(x.device), relative_weight(passed[path][1]))
            yield x[:, columns] * factor, wanted * factor

    for index, path in enumerate(adapter.layers):
        kinds = [kind for kind in ("attention", "ffn") if (index, kind) in views and views[index, kind].any()]
        prune(False)
        blocks = [block for block in adapter.blocks if block.layer == index and block.count]
        aims: dict[str, list[Tensor]] = {block.out: [] for block in blocks}
        weights: list[Tensor] = []
        share = residual
        for passed in watch(model, teacher, [path, *(name for b in blocks for name in _watched(b))], final=True):
            share = share if _additive(passed, blocks, path) else 0.0
            weights.append(relative_weight(passed[path][1]))
            for block in blocks:
                before = share * _before(passed, block, path) if share else 0.0
                aims[block.out].append(_reached(passed, block) + before)
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


def _watched(block: Block) -> list[str]:
    return [block.out, block.norm] if block.norm else [block.out]


def _reached(passed: Passed, block: Block) -> Tensor:
    """What a norm takes behind a block, residual and output (tokens, d); the output alone where there is none."""
    return passed[block.norm][0] if block.norm else passed[block.out][1]


def _before(passed: Passed, block: Block, layer: str) -> Tensor:
    """The residual (tokens, d) to which a block's output is added, where `_additive` says that it is."""
    taken, given = passed[layer]
    return taken if block.kind == "attention" else given - passed[block.out][1]


def _additive(passed: Passed, blocks: list[Block], layer: str) -> bool:
    """Whether a layer adds the outputs of its two blocks to its input as they are; nothing is normed or scaled."""
    taken, given = passed[layer]
    total = taken.float() + sum(passed[block.out][1].float() for block in blocks)
    return len(blocks) == 2 and float((total - given.float()).norm()) <= ROUNDING * float(given.float().norm())
