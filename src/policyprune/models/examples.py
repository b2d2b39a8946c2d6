"""Tiny random models for checks that need no download: of every family and its variants, and of a given config."""

import copy
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from policyprune.errors import UsageError
from policyprune.models.adapter import Adapter
from policyprune.models.families import FAMILIES
from policyprune.models.residual import KEPT_HIDDEN_SIZE

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GROUPED: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 24}
HEADS: dict[str, Any] = {**GROUPED, "head_dim": 12}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
WINDOW: dict[str, Any] = {"sliding_window": 6}
EXAMPLES: dict[str, dict[str, Any]] = {
    "llama": {**HEADS, "attention_bias": True, "mlp_bias": True},
    "mistral": {**HEADS, **WINDOW},
    "qwen2": {**GROUPED, **WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": HEADS,
    "gemma": HEADS,
    "gemma2": {**HEADS, **WINDOW, "layer_types": MIXED},
    "gemma3_text": {**HEADS, **WINDOW, "layer_types": MIXED},
    "smollm3": {**GROUPED, "no_rope_layer_interval": 2},
    "granite": {**GROUPED, "logits_scaling": 3.0, "residual_multiplier": 0.7, "attention_multiplier": 0.4},
    "olmo2": GROUPED,
    "phi3": GROUPED,
    "gpt2": {},
    "opt": {"ffn_dim": 24},
    "opt, norms after the blocks": {"ffn_dim": 24, "do_layer_norm_before": False, "word_embed_proj_dim": 16},
    "gpt_neox": {"intermediate_size": 24},
    "gpt_neox, sequential": {"intermediate_size": 24, "use_parallel_residual": False},
    "bloom": {},
    "falcon": {"num_attention_heads": 8, "num_kv_heads": 4, "new_decoder_architecture": True, "bias": True},
    "falcon, multi-query": {"multi_query": True},
    "falcon, ALiBi": {"multi_query": False, "alibi": True, "parallel_attn": False, "bias": True},
    "bert": {"intermediate_size": 24},
    "roberta": {"intermediate_size": 24},
    "electra": {"intermediate_size": 24, "embedding_size": 16},
    "distilbert": {"hidden_dim": 24},
}

# of a miniature, at most
GROUPS, QUERIES, CHANNELS, VOCABULARY, LAYERS = 4, 2, 64, 512, 4  # at most


def example(name: str) -> PreTrainedModel:
    """A random model for an entry of `EXAMPLES`, in float32 and eval mode."""
    kind = name.partition(",")[0]
    return random_model(AutoConfig.for_model(kind, **{**SIZES, **EXAMPLES[name]}), FAMILIES[kind].head)


@torch.no_grad()
def random_model(config: PreTrainedConfig, head: str) -> PreTrainedModel:
    """A model of the stock class with weights large enough for each unit to matter, biases and norms not at 0 and 1."""
    torch.manual_seed(0)
    model = getattr(transformers, f"AutoModelFor{head}").from_config(config).float().eval().requires_grad_(False)
    assert isinstance(model, PreTrainedModel)
    for parameter in model.parameters():
        spread = 0.1 if parameter.dim() < 2 else 1.2 / min(parameter.shape) ** 0.5
        parameter.add_(spread * torch.randn_like(parameter))
    return model


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
    kept_groups, kept_queries = min(attention.count * attention.heads, GROUPS), min(attention.queries, QUERIES)
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
