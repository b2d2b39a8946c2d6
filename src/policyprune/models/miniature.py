"""The same architecture at a size at which random weights cost nothing."""

import copy
from typing import Any

from transformers import PreTrainedConfig

from policyprune.errors import UsageError
from policyprune.models.adapter import Adapter
from policyprune.models.residual import KEPT_HIDDEN_SIZE

GROUPS, QUERIES, CHANNELS, VOCABULARY, LAYERS = 4, 2, 64, 512, 4  # at most


def miniature(config: PreTrainedConfig, adapter: Adapter) -> PreTrainedConfig:
    """A copy with few layers (each type that `layer_types` names is among them), heads, channels and tokens.

    The head size, the positions and all other choices stay. What a pruned config says beyond the stock keys is dropped.
    """
    small, family = copy.deepcopy(config), adapter.family
    small.per_layer_config = None  # type: ignore[assignment]
    for key in ("auto_map", KEPT_HIDDEN_SIZE):  # the stock class is built
        vars(small).pop(key, None)
    left = [block for block in adapter.blocks if block.kind == "attention" and block.count]
    if not left:
        raise UsageError("model.source: no layer of this model has attention left, there is nothing to check")
    attention = max(left, key=lambda block: block.count)
    queries = attention.width // attention.heads // adapter.head_dim
    kept_groups, kept_queries = min(attention.count * attention.heads, GROUPS), min(queries, QUERIES)
    heads = kept_groups * kept_queries
    divided = family.head_dim is None  # the head size is hidden size / heads
    if divided or config.hidden_size > heads * adapter.head_dim or config.hidden_size % heads:
        _set_hidden(small, config.hidden_size, heads * adapter.head_dim)
    setattr(small, family.group_count, kept_groups)
    setattr(small, family.head_count, heads)
    if family.head_dim:
        setattr(small, family.head_dim, adapter.head_dim)
    channels = max(block.count for block in adapter.blocks if block.kind == "ffn")
    if hasattr(small, family.channel_count):
        setattr(small, family.channel_count, min(channels, CHANNELS))
    _few_layers(small, config.num_hidden_layers)
    _few_tokens(small, config.vocab_size)
    return small


def _set_hidden(config: PreTrainedConfig, old: int, new: int) -> None:
    """Also for embeddings of the same size as the hidden states (OPT, ELECTRA)."""
    for key in ("word_embed_proj_dim", "embedding_size"):
        if getattr(config, key, None) == old:
            setattr(config, key, new)
    config.hidden_size = new


def _few_layers(config: PreTrainedConfig, total: int) -> None:
    types: list[Any] = getattr(config, "layer_types", None) or [None] * total
    first_of_each = [types.index(kind) for kind in dict.fromkeys(types)]
    layers = min(total, max(LAYERS, max(first_of_each) + 1))
    for key, value in vars(config).items():
        if isinstance(value, list) and len(value) == total:
            setattr(config, key, value[:layers])
    config.num_hidden_layers = layers


def _few_tokens(config: PreTrainedConfig, total: int) -> None:
    config.vocab_size = min(total, VOCABULARY)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, key, None)
        if value is not None and (not isinstance(value, int) or value >= config.vocab_size):
            setattr(config, key, 0)
