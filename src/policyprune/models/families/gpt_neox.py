"""GPT-NeoX and Pythia: one projection holds q, k, v of a head, then those of the next."""

from policyprune.models.adapter import Attention, Family, FeedForward
from policyprune.models.residual import Residual

GPT_NEOX = Family(
    model_types=("gpt_neox",),
    layers="layers",
    attention=Attention(
        block="attention",
        query="attention.query_key_value",
        key="attention.query_key_value",
        value="attention.query_key_value",
        out="attention.dense",
        interleaved=True,
    ),
    ffn=FeedForward(block="mlp", inputs=("mlp.dense_h_to_4h",), out="mlp.dense_4h_to_h"),
    group_count="num_attention_heads",
    head_dim=None,
    residual=lambda config: Residual(
        layer_norms=("input_layernorm", "post_attention_layernorm"),
        embeddings=("embed_in",),
        norms=("final_layer_norm",),
    ),
)
