"""OPT, whose FFN is not a module of its own."""

from policyprune.models.adapter import Attention, Family, FeedForward

OPT = Family(
    model_types=("opt",),
    layers="decoder.layers",
    attention=Attention(
        block="self_attn",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        out="self_attn.out_proj",
        sizes=(("num_heads", "heads"),),
    ),
    ffn=FeedForward(block=None, inputs=("fc1",), out="fc2"),
    group_count="num_attention_heads",
    channel_count="ffn_dim",
    removable=lambda config: bool(config.do_layer_norm_before),
    head_dim=None,
)
