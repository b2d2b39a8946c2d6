"""BLOOM: its ALiBi slopes are made for the number of heads, and its config states no number of channels."""

from policyprune.models.adapter import Attention, Family, FeedForward
from policyprune.models.residual import Residual

BLOOM = Family(
    model_types=("bloom",),
    layers="h",
    attention=Attention(
        block="self_attention",
        query="self_attention.query_key_value",
        key="self_attention.query_key_value",
        value="self_attention.query_key_value",
        out="self_attention.dense",
        interleaved=True,
        together=lambda config: "ALiBi slopes belong to positions in the row of heads",
        adds_residual=True,
    ),
    ffn=FeedForward(block="mlp", inputs=("mlp.dense_h_to_4h",), out="mlp.dense_4h_to_h", adds_residual=True),
    group_count="n_head",
    head_count="n_head",
    head_dim=None,
    residual=lambda config: Residual(
        layer_norms=("input_layernorm", "post_attention_layernorm"),
        embeddings=("word_embeddings",),
        norms=("word_embeddings_layernorm", "ln_f"),
    ),
)
