"""Falcon: one projection holds the queries, key and value of a group, then of the next (multi-query: one group)."""

from transformers import PreTrainedConfig

from policyprune.models.adapter import Attention, Family, FeedForward
from policyprune.models.residual import Residual


def _together(config: PreTrainedConfig) -> str:
    return "ALiBi slopes belong to positions in the row of heads" if config.alibi else ""


FALCON = Family(
    model_types=("falcon",),
    layers="h",
    attention=Attention(
        block="self_attention",
        query="self_attention.query_key_value",
        key="self_attention.query_key_value",
        value="self_attention.query_key_value",
        out="self_attention.dense",
        interleaved=True,
        sizes=(("num_heads", "heads"), ("num_kv_heads", "groups")),
        together=_together,
    ),
    ffn=FeedForward(block="mlp", inputs=("mlp.dense_h_to_4h",), out="mlp.dense_4h_to_h"),
    group_count="num_kv_heads",
    channel_count="ffn_hidden_size",
    head_dim=None,
    residual=lambda config: Residual(
        layer_norms=("input_layernorm", "post_attention_layernorm", "ln_attn", "ln_mlp"),
        embeddings=("word_embeddings",),
        norms=("ln_f",),
    ),
)
