"""LLaMA (Vicuna, SmolLM, ...) and the families whose layers have the same names; OLMo 2 and Phi-3 differ a little."""

from dataclasses import replace

from transformers import PreTrainedConfig

from policyprune.models.family import Attention, Family, FeedForward, Residual, Size

QUERIES: tuple[str, Size] = ("num_key_value_groups", "queries")


def _residual(config: PreTrainedConfig) -> Residual:
    return Residual(
        layer_norms=(
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ),
        embeddings=("embed_tokens",),
        norms=("norm",),
        scaled=config.model_type.startswith("gemma"),  # it multiplies the embeddings by the root of the hidden size
    )


LLAMA = Family(
    model_types=(
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
        "smollm3",
    ),
    layers="layers",
    attention=Attention(
        block="self_attn",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        out="self_attn.o_proj",
        sizes=(QUERIES,),
    ),
    ffn=FeedForward(block="mlp", inputs=("mlp.gate_proj", "mlp.up_proj"), out="mlp.down_proj"),
    residual=_residual,
)

GEMMA2 = replace(
    LLAMA,
    model_types=("gemma2", "gemma3_text"),
    attention=replace(LLAMA.attention, out_norm="post_attention_layernorm"),
    ffn=replace(LLAMA.ffn, out_norm="post_feedforward_layernorm"),
)

GRANITE = replace(LLAMA, model_types=("granite",), multiplier=lambda config: float(config.residual_multiplier))

OLMO2 = replace(
    GEMMA2,
    model_types=("olmo2",),
    attention=replace(GEMMA2.attention, together=lambda config: "queries and keys are normalised over all heads"),
)

PHI3 = replace(  # Phi-4 too: q, k, v in one projection, gate and up in another
    LLAMA,
    model_types=("phi3",),
    attention=Attention(
        block="self_attn",
        query="self_attn.qkv_proj",
        key="self_attn.qkv_proj",
        value="self_attn.qkv_proj",
        out="self_attn.o_proj",
        sizes=(QUERIES, ("num_key_value_heads", "groups"), ("config.num_attention_heads", "heads")),
    ),
    ffn=FeedForward(block="mlp", inputs=("mlp.gate_up_proj", "mlp.gate_up_proj"), out="mlp.down_proj"),
)
