"""GPT-2: q, k, v in one projection."""

from policyprune.models.adapter import Attention, Family, FeedForward
from policyprune.models.residual import Residual

GPT2 = Family(
    model_types=("gpt2",),
    layers="h",
    attention=Attention(
        block="attn",
        query="attn.c_attn",
        key="attn.c_attn",
        value="attn.c_attn",
        out="attn.c_proj",
        sizes=(("num_heads", "heads"), ("split_size", "features")),
    ),
    ffn=FeedForward(block="mlp", inputs=("mlp.c_fc",), out="mlp.c_proj"),
    group_count="n_head",
    head_count="n_head",
    channel_count="n_inner",
    removable=lambda config: not config.scale_attn_by_inverse_layer_idx,
    head_dim=None,
    residual=lambda config: Residual(layer_norms=("ln_1", "ln_2"), embeddings=("wte", "wpe"), norms=("ln_f",)),
)
