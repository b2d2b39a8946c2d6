"""Phi-3 and Phi-4: q, k, v in one projection, gate and up in another."""

from policyprune.models.adapter import Attention, Family, FeedForward
from policyprune.models.families.llama import LLAMA

PHI3 = Family(
    model_types=("phi3",),
    layers="layers",
    attention=Attention(
        block="self_attn",
        query="self_attn.qkv_proj",
        key="self_attn.qkv_proj",
        value="self_attn.qkv_proj",
        out="self_attn.o_proj",
        sizes=(("num_key_value_heads", "groups"), ("config.num_attention_heads", "heads")),
    ),
    ffn=FeedForward(block="mlp", inputs=("mlp.gate_up_proj", "mlp.gate_up_proj"), out="mlp.down_proj"),
    residual=LLAMA.residual,
)
