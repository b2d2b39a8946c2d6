"""What the parts of a model cost, in the terms of a budget."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from policyprune.config.schema import Budget as BudgetConfig
from policyprune.errors import UsageError
from policyprune.models.adapter import Adapter, Block
from policyprune.pruning.budget.block_latency import BlockLatency
from policyprune.pruning.space import HIDDEN, Group, Space


@dataclass(frozen=True)
class Prices:
    """Costs of decisions and of openings: `cost` (n,) of the leaves, 0 at gates.

    An opening is paid once when the first leaf of a block or layer is kept: `opening` (O,) its cost, `opens` (n, 2) the
    openings of each leaf, `opening_gate` (O,) the gate that decides on it; index 0 of an opening and -1 of a gate
    stand for none. `total` is the dense model's cost, `rest` what no mask can take away.
    """

    cost: Tensor
    opening: Tensor
    opens: Tensor
    opening_gate: Tensor
    total: float
    rest: float


def prices(config: BudgetConfig, adapter: Adapter, space: Space, latency: BlockLatency | None) -> Prices:
    """Parameters, multiply-accumulates or measured time of every decision of a space.

    A block's cost is affine in its kept units. What the layer takes besides them (norms, output biases) is saved where
    the granularity can take whole layers and the family lets an empty one be deleted: in parameters when layers are
    units themselves, in latency always.
    """
    if space.groups[0].kind == HIDDEN[1]:
        return _prices_of_hidden(config, adapter, space.groups[0])
    blocks = {(block.layer, block.kind): block for block in adapter.blocks}

    def unit_and_opening(block: Block) -> tuple[float, float]:
        if config.name == "latency":
            assert latency is not None
            return latency.unit[block.kind], latency.opening[block.kind]
        return float(block.params_per_unit if config.name == "params" else block.macs(config.sequence_length)), 0.0

    def whole(block: Block) -> float:
        unit, opening = unit_and_opening(block)
        return opening + unit * block.count if block.count else 0.0

    groups = space.groups
    kinds = {group.kind for group in space.units.groups}
    deletable = config.scope == "global" and adapter.removable_layers and kinds == {"attention", "ffn"}
    count = len(adapter.layers)
    per_layer = {"params": adapter.fixed_params / count, "latency": latency.layer if latency else 0.0}.get(
        config.name, 0.0
    )
    by_gate = any(group.kind == "layer" for group in groups)
    saved = per_layer if deletable and (by_gate or config.name == "latency") else 0.0
    covered = {(group.layer, group.kind) for group in space.units.groups}
    saving = saved * len({layer for layer, _ in covered})
    rest = count * per_layer - saving + sum(whole(block) for key, block in blocks.items() if key not in covered)
    priced = sum(whole(blocks[key]) for key in covered) + saving
    total = float(count) if config.name == "latency" else rest + priced

    start = {}
    position = 0
    for group in groups:
        start[group.layer, group.kind] = position
        position += group.count
    cost: list[Tensor] = []
    opens: list[Tensor] = []
    opening, gate = [0.0], [-1]
    of_layer: dict[int, int] = {}
    if saved and any(group.kind != "layer" and space.leaf[start[group.layer, group.kind]] for group in groups):
        for layer in sorted({group.layer for group in groups}):
            of_layer[layer] = len(opening)
            opening.append(saved)
            gate.append(start.get((layer, "layer"), -1))
    for group in groups:
        leaf = bool(space.leaf[start[group.layer, group.kind]])
        own = torch.zeros(group.count, 2, dtype=torch.long)
        if not leaf:
            price = 0.0
        elif group.kind == "layer":
            price = saved + sum(whole(blocks[group.layer, kind]) for kind in kinds if (group.layer, kind) in covered)
        else:
            own[:, 1] = of_layer.get(group.layer, 0)
            block = blocks[group.layer, group.kind.removesuffix("_block")]
            unit, once = unit_and_opening(block)
            price = whole(block) if group.kind.endswith("_block") else unit
            if once and not group.kind.endswith("_block"):
                own[:, 0] = len(opening)
                opening.append(once)
                above = (start.get((group.layer, kind), -1) for kind in (f"{group.kind}_block", "layer"))
                gate.append(next((index for index in above if index >= 0), -1))
        cost.append(torch.full((group.count,), price, dtype=torch.float64))
        opens.append(own)
    return Prices(
        torch.cat(cost),
        torch.tensor(opening, dtype=torch.float64),
        torch.cat(opens),
        torch.tensor(gate),
        total,
        rest,
    )


def _prices_of_hidden(config: BudgetConfig, adapter: Adapter, group: Group) -> Prices:
    """A hidden channel costs the same wherever it is: its row or column of every projection, its entry of every norm.

    What is left when all are gone are the biases that stand inside the blocks, and the attention scores.
    """
    hidden = adapter.hidden
    assert hidden is not None
    assert config.name in ("params", "flops")
    if config.name == "params":
        price, total = hidden.params, adapter.fixed_params + sum(b.count * b.params_per_unit for b in adapter.blocks)
    else:
        price = config.sequence_length * hidden.macs_per_token
        total = sum(block.count * block.macs(config.sequence_length) for block in adapter.blocks)
    none = torch.zeros(1, dtype=torch.float64)
    return Prices(
        torch.full((group.count,), price, dtype=torch.float64),
        none,
        torch.zeros(group.count, 2, dtype=torch.long),
        torch.tensor([-1]),
        float(total),
        float(total - group.count * price),
    )


def chunks(adapter: Adapter, space: Space, align: int | None) -> Tensor:
    """How many units of a block are kept or dropped together so that its width is a multiple of `align`: (n,) int64.

    Widths are channels of an FFN, features at the attention's output projection, and hidden channels; the attention of
    a model whose dense width is no multiple itself is left as it is. UsageError where nothing is as wide as `align`.
    """
    blocks = {(block.layer, block.kind): block for block in adapter.blocks}
    sizes = []
    for group in space.groups:
        block = blocks.get((group.layer, group.kind))
        size = 1
        if align and block is not None:
            fits = block.count * block.width % align == 0
            size = align // math.gcd(align, block.width) if block.kind == "ffn" or fits else 1
            if size > block.count:
                raise UsageError(
                    f"granularity.align: {align} is more than the width {block.count * block.width} of the "
                    f"{block.kind} of layer {block.layer}"
                )
        if align and group.kind == HIDDEN[1]:
            size = align
            if size > group.count:
                raise UsageError(f"granularity.align: {align} is more than the hidden size {group.count}")
        sizes.append(size)
    return torch.tensor(sizes)[space.group_of]


def check_alike(adapter: Adapter, why: str) -> None:
    """UsageError where the layers of the dense model differ in width."""
    counts: dict[str, set[int]] = {}
    for block in adapter.blocks:
        counts.setdefault(block.kind, set()).add(block.count)
    if any(len(found) > 1 for found in counts.values()):
        raise UsageError(f"{why} needs a model whose layers have equal widths, this one has {counts}")
