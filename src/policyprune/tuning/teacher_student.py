"""A pruned student and its dense teacher, side by side, one block after the other."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from policyprune.models.adapter import Block
from policyprune.models.layerwise import columns_of, projection, walk, watch
from policyprune.models.stream import Passed, added, gain_of, per_residual, token_weight, watched
from policyprune.pruning.compensation import Compensation
from policyprune.pruning.prunable import PrunableModel
from policyprune.tasks.task import CalibrationData

ROUNDING = 0.02  # relative, of sums in bfloat16

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

    Both are multiplied by the weight of a token (`stream.token_weight`): an error counts relative to what it is added
    to. Without that a token with massive activations is nearly all of the least-squares problem of the blocks that make
    and unmake these. Of the teacher's and the student's weight it is the smaller one, for a student may have such
    activations where its teacher has none. `weight` and outputs are multiplied by the `gain` (d,) of their channels, by
    which they count in the residual; a new weight has to be divided by it.
    """

    block: Block
    kept: Tensor
    columns: Tensor
    weight: Tensor
    gain: Tensor
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
    share of what the student's residual lacks that a block is to make up for; it is 0 where a layer adds something else
    to its input than what its two blocks are known to add.
    """
    model, adapter, views = prunable.model, prunable.adapter, prunable.views(mask)
    last = len(adapter.layers) - 1
    prune(False)
    teacher_layers = walk(model, adapter, lesson.batches, lesson.first_token)
    teacher = next(teacher_layers)
    student_layers = walk(model, adapter, lesson.batches, lesson.first_token)
    student = next(student_layers)

    def samples(block: Block, columns: Tensor, gain: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        path, bias = adapter.layers[block.layer], projection(model, block)[1]
        seen = watch(model, student, [path, *watched(block)], final=False)
        for passed, aim in zip(seen, aims[block.out], strict=True):
            x, out = passed[block.out]
            wanted = aim.wanted - (_reached(passed, block) - out) - (0.0 if bias is None else bias)
            wanted = wanted - _made_up_for(passed, block, path, aim.share)
            counts = torch.minimum(aim.weight, token_weight(passed, block, path))
            yield x[:, columns] * counts, wanted * counts * gain

    for index, path in enumerate(adapter.layers):
        kinds = [kind for kind in ("attention", "ffn") if (index, kind) in views and views[index, kind].any()]
        prune(False)
        blocks = [block for block in adapter.blocks if block.layer == index and block.count]
        gains = {block.out: gain_of(model, block) for block in blocks}
        aims: dict[str, list[_Aim]] = {block.out: [] for block in blocks}
        for passed in watch(model, teacher, [path, *(name for b in blocks for name in watched(b))], final=True):
            additive = bool(residual) and _additive(passed, blocks, path)
            for block in blocks:
                share = residual * per_residual(passed, block, gains[block.out]) if additive else None
                wanted = _reached(passed, block) + _made_up_for(passed, block, path, share)
                aims[block.out].append(_Aim(wanted, share, token_weight(passed, block, path)))
        for kind in kinds:
            block, kept = prunable.blocks[index, kind], views[index, kind].nonzero().flatten()
            columns = columns_of(block, kept).to(model.device)
            gain = gains[block.out]
            weight = projection(model, block)[0][:, columns] * gain[:, None]
            prune(True)
            yield BlockTask(block, kept, columns, weight, gain, samples(block, columns, gain))
        if index < last:
            teacher = next(teacher_layers)
            prune(True)
            student = next(student_layers)


class _Aim(NamedTuple):
    """What the teacher says of a batch: what a block is to reach, with `share` of the residual, and tokens' weights."""

    wanted: Tensor
    share: Tensor | float | None
    weight: Tensor


def _reached(passed: Passed, block: Block) -> Tensor:
    """What a norm takes behind a block, residual and output (tokens, d); the output alone where there is none."""
    return passed[block.norm][0] if block.norm else passed[block.out][1]


def _made_up_for(passed: Passed, block: Block, layer: str, share: Tensor | float | None) -> Tensor | float:
    """A share of the residual (tokens, d) to which a block's output is added, where `_additive` says that it is."""
    taken, given = passed[layer]
    return 0.0 if share is None else share * (taken if block.kind == "attention" else given - added(passed, block))


def _additive(passed: Passed, blocks: list[Block], layer: str) -> bool:
    """Whether a layer's output is its input and what its two blocks add."""
    taken, given = passed[layer]
    total = taken.float() + sum(added(passed, block).float() for block in blocks)
    return len(blocks) == 2 and float((total - given.float()).norm()) <= ROUNDING * float(given.float().norm())
