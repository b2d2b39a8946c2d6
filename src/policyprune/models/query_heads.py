"""Query heads as units of attention, where several share a key and a value."""

from dataclasses import replace

from transformers import PreTrainedModel

from policyprune.errors import UsageError
from policyprune.models.adapter import Adapter, Block, costs

QUERY_HEAD = "query_head"  # granularity


def by_query_heads(model: PreTrainedModel, adapter: Adapter) -> Adapter:
    """The same model with query heads as the units of its attention; keys and values stay with the last of a group.

    UsageError for a model whose query heads cannot go without their key and value.
    """
    attention = [block for block in adapter.blocks if block.kind == "attention" and block.count]
    reason = _obstacle(adapter, attention)
    if reason:
        raise UsageError(f"granularity: query heads of this model cannot be removed alone: {reason}")
    return replace(
        adapter, blocks=tuple(_split(model, block) if block in attention else block for block in adapter.blocks)
    )


def _obstacle(adapter: Adapter, attention: list[Block]) -> str:
    if reason := next((block.together for block in attention if block.together), ""):
        return f"{reason}; use granularity=sublayer or channel"
    if all(block.queries == 1 for block in attention):
        return "each has a key and a value of its own; use granularity=head"
    if not can_split(adapter):
        return "one projection holds them between keys and values; use granularity=head"
    return ""


def can_split(adapter: Adapter) -> bool:
    """Whether the family says where a layer reads how many query heads share a key."""
    return any(size == "queries" for _, size in adapter.family.attention.sizes)


def _split(model: PreTrainedModel, block: Block) -> Block:
    query, *shared, out = block.parts
    width = block.width // block.queries
    parts = (replace(query, width=width), replace(out, width=width))
    params, macs = costs(model, parts)
    shared_params, shared_macs = costs(model, shared)
    return replace(
        block,
        count=block.count * block.queries,
        width=width,
        parts=parts,
        params_per_unit=params,
        macs_per_token=macs,
        score_width=width,
        groups=block.count,
        shared=tuple(shared),
        shared_params=shared_params,
        shared_macs=shared_macs,
    )
