"""What the parts of a model cost, in the terms of a budget."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from policyprune.config.schema import Budget as BudgetOptions
from policyprune.errors import UsageError
from policyprune.models.adapter import Adapter, Block
from policyprune.pruning.budget.block_latency import BlockLatency
from policyprune.pruning.space import HIDDEN, Group, Key, Space


@dataclass(frozen=True)
class FixedCosts:
    """What a block or layer costs once, as soon as one of its units is kept.

    `cost` (F,) are these costs. `of_decision` (n, 2) are the two that each decision pays for together with the others
    of its block and layer. `gate` (F,) is the decision on the whole block or layer. Index 0 of a cost and -1 of a gate
    stand for none.
    """

    cost: Tensor
    of_decision: Tensor
    gate: Tensor

    def to(self, device: torch.device) -> "FixedCosts":
        """The same with its tensors on `device`."""
        return FixedCosts(self.cost.to(device), self.of_decision.to(device), self.gate.to(device))


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Cost of each decision (n,) float64, 0 at gates, and what is paid once.

    `total` is the dense model's cost, `rest` what no mask can take away.
    """

    cost: Tensor
    fixed: FixedCosts | None
    total: float
    rest: float


@dataclass(frozen=True)
class _BlockCosts:
    """Cost of a block: `unit` for each decision to keep, and `fixed` once; `whole` with all of them."""

    unit: float
    fixed: float
    whole: float


def costs_of(options: BudgetOptions, adapter: Adapter, space: Space, latency: BlockLatency | None) -> Costs:
    """Parameters, multiply-accumulates or measured time of every decision of a space.

    A block's cost is affine in its kept units. What the layer takes besides them (norms, output biases) is saved where
    the granularity can take whole layers and the family lets an empty one be deleted: in parameters when layers are
    units themselves, in latency always.
    """
    if space.groups[0].kind == HIDDEN[1]:
        return _costs_of_hidden(options, adapter, space.groups[0])
    blocks = {(block.layer, block.kind): _block_costs(options, block, latency) for block in adapter.blocks}
    covered = [(group.layer, group.kind) for group in space.units.groups]
    kinds = {kind for _, kind in covered}
    count = len(adapter.layers)
    per_layer = {"params": adapter.fixed_params / count, "latency": latency.layer if latency else 0.0}.get(
        options.name, 0.0
    )
    deletable = options.scope == "global" and adapter.removable_layers and kinds == {"attention", "ffn"}
    by_gate = any(group.kind == "layer" for group in space.groups)
    saved = per_layer if deletable and (by_gate or options.name == "latency") else 0.0
    saving = saved * len({layer for layer, _ in covered})
    rest = count * per_layer - saving + sum(costs.whole for key, costs in blocks.items() if key not in covered)
    total = float(count) if options.name == "latency" else rest + sum(blocks[key].whole for key in covered) + saving
    cost, fixed = _of_decisions(space, {key: blocks[key] for key in covered}, saved)
    return Costs(cost=cost, fixed=fixed if len(fixed.cost) > 1 else None, total=total, rest=rest)


def _block_costs(options: BudgetOptions, block: Block, latency: BlockLatency | None) -> _BlockCosts:
    if options.name == "latency":
        assert latency is not None
        unit, fixed = latency.unit[block.kind], latency.fixed[block.kind]
    else:
        unit, shared = block.macs(options.sequence_length), options.sequence_length * block.shared_macs
        if options.name == "params":
            unit, shared = block.params_per_unit, block.shared_params
        unit, fixed = (
            float(unit * (block.groups or 1)),
            float(shared * block.groups),
        )  # keys and values stay to the last
    return _BlockCosts(unit, fixed, fixed + unit * block.decisions if block.count else 0.0)


def _of_decisions(space: Space, blocks: Mapping[Key, _BlockCosts], saved: float) -> tuple[Tensor, FixedCosts]:
    """Cost of each decision, and what is paid once: `saved` of a layer that goes, and the fixed costs of blocks."""
    finest = [group for group in space.groups if space.is_finest(group)]
    fixed, gates = [0.0], [-1]
    of_layer: dict[int, int] = {}
    if saved and any(group.kind != "layer" for group in finest):
        for layer in sorted({group.layer for group in space.groups}):
            of_layer[layer] = len(fixed)
            fixed.append(saved)
            gates.append(space.starts.get((layer, "layer"), -1))
    costs, paid = [], []
    for group in space.groups:
        cost, of_block = 0.0, 0
        kind = group.kind.removesuffix("_block")
        if group in finest and group.kind == "layer":
            cost = saved + sum(costs.whole for (layer, _), costs in blocks.items() if layer == group.layer)
        elif group in finest and kind != group.kind:
            cost = blocks[group.layer, kind].whole
        elif group in finest:
            cost = blocks[group.layer, kind].unit
            if blocks[group.layer, kind].fixed:
                of_block = len(fixed)
                fixed.append(blocks[group.layer, kind].fixed)
                above = (space.starts.get((group.layer, gate), -1) for gate in (f"{kind}_block", "layer"))
                gates.append(next((gate for gate in above if gate >= 0), -1))
        in_layer = of_layer.get(group.layer, 0) if group in finest and group.kind != "layer" else 0
        costs.append(torch.full((group.count,), cost, dtype=torch.float64))
        paid.append(torch.tensor([of_block, in_layer]).repeat(group.count, 1))
    amounts = torch.tensor(fixed, dtype=torch.float64)
    return torch.cat(costs), FixedCosts(amounts, torch.cat(paid), torch.tensor(gates))


def _costs_of_hidden(options: BudgetOptions, adapter: Adapter, group: Group) -> Costs:
    """A hidden channel costs the same wherever it is: its row or column of every projection, its entry of every norm.

    What is left when all are gone are the biases that stand inside the blocks, and the attention scores.
    """
    hidden = adapter.hidden
    assert hidden is not None
    assert options.name in ("params", "flops")
    if options.name == "params":
        cost, total = hidden.params, adapter.fixed_params + sum(b.count * b.params_per_unit for b in adapter.blocks)
    else:
        cost = options.sequence_length * hidden.macs_per_token
        total = sum(block.count * block.macs(options.sequence_length) for block in adapter.blocks)
    each = torch.full((group.count,), cost, dtype=torch.float64)
    return Costs(cost=each, fixed=None, total=float(total), rest=float(total - group.count * cost))


def chunks(adapter: Adapter, space: Space, align: int) -> Tensor:
    """How many units of a block are kept or dropped together so that its width is a multiple of `align`: (n,) int64.

    Widths are channels of an FFN, features at the attention's output projection, and hidden channels; the attention of
    a model whose dense width is no multiple itself is left as it is. UsageError where nothing is as wide as `align`.
    """
    blocks = {(block.layer, block.kind): block for block in adapter.blocks}
    sizes = []
    for group in space.groups:
        block = blocks.get((group.layer, group.kind))
        size = 1
        if block is not None:
            fits = block.count * block.width % align == 0
            width = block.width * (block.groups or 1)  # of a decision
            size = align // math.gcd(align, width) if block.kind == "ffn" or fits else 1
            if size > block.decisions:
                raise UsageError(
                    f"granularity.align: {align} is more than the width {block.count * block.width} of the "
                    f"{block.kind} of layer {block.layer}"
                )
        if group.kind == HIDDEN[1]:
            size = align
            if size > group.count:
                raise UsageError(f"granularity.align: {align} is more than the hidden size {group.count}")
        sizes.append(size)
    return torch.tensor(sizes)[space.group_of]


def check_equal_widths(adapter: Adapter, why: str) -> None:
    """UsageError where the layers of the dense model differ in width."""
    counts: dict[str, set[int]] = {}
    for block in adapter.blocks:
        counts.setdefault(block.kind, set()).add(block.count)
    if any(len(of_kind) > 1 for of_kind in counts.values()):
        raise UsageError(f"{why} needs a model whose layers have equal widths, this one has {counts}")
