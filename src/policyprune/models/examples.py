"""Tiny random models of every family and of its variants, for checks that need no download."""

from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from policyprune.models.families import FAMILIES

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
