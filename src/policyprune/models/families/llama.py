"""LLaMA (Vicuna, SmolLM, ...), and the families whose layers have the same names."""

from policyprune.models.adapter import Attention, Family, FeedForward

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
)
