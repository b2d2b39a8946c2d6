"""LLaMA, Vicuna, SmolLM and everything else that loads as `llama`."""

from policyprune.models.adapter import Attention, Family, FeedForward

LLAMA = Family(
    model_types=("llama",),
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
