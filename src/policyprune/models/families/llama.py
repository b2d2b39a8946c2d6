"""LLaMA (Vicuna, SmolLM, ...), and the families whose layers have the same names."""

from transformers import PreTrainedConfig

from policyprune.models.adapter import Attention, Family, FeedForward
from policyprune.models.residual import Residual


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
        "gemma2",
        "gemma3_text",
        "smollm3",
        "granite",
    ),
    layers="layers",
    attention=Attention(
        block="self_attn",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        out="self_attn.o_proj",
    ),
    ffn=FeedForward(block="mlp", inputs=("mlp.gate_proj", "mlp.up_proj"), out="mlp.down_proj"),
    residual=_residual,
)
