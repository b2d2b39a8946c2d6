"""DistilBERT, with names of its own in the layers and in the config."""

from policyprune.models.adapter import Attention, Family, FeedForward, post_norm
from policyprune.models.residual import Residual

DISTILBERT = Family(
    model_types=("distilbert",),
    layers="transformer.layer",
    attention=Attention(
        block="attention",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        out="attention.out_lin",
        norm="sa_layer_norm",
    ),
    ffn=FeedForward(block=None, inputs=("ffn.lin1",), out="ffn.lin2", norm="output_layer_norm"),
    group_count="n_heads",
    head_count="n_heads",
    channel_count="hidden_dim",
    head_dim=None,
    head="SequenceClassification",
    removable=post_norm,
    residual=lambda config: Residual(
        layer_norms=("sa_layer_norm", "output_layer_norm"),
        embeddings=("embeddings.word_embeddings", "embeddings.position_embeddings"),
        norms=("embeddings.LayerNorm",),
        heads=("pre_classifier", "qa_outputs"),
    ),
)
