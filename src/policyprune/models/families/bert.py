"""BERT, and RoBERTa and ELECTRA, whose layers have the same names."""

from transformers import PreTrainedConfig

from policyprune.models.adapter import Attention, Family, FeedForward, post_norm
from policyprune.models.residual import Residual


def _residual(config: PreTrainedConfig) -> Residual:
    """ELECTRA's embeddings may be narrower than the hidden states, with a projection between them."""
    projected = getattr(config, "embedding_size", config.hidden_size) != config.hidden_size
    names = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    return Residual(
        layer_norms=("attention.output.LayerNorm", "output.LayerNorm"),
        embeddings=() if projected else tuple(f"embeddings.{name}" for name in names),
        norms=() if projected else ("embeddings.LayerNorm",),
        writers=("embeddings_project",),
        readers=("pooler.dense",),
        heads=("classifier.dense", "qa_outputs"),
    )


BERT = Family(
    model_types=("bert", "roberta", "electra"),
    layers="encoder.layer",
    attention=Attention(
        block="attention.self",
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        out="attention.output.dense",
        norm="attention.output.LayerNorm",
    ),
    ffn=FeedForward(block=None, inputs=("intermediate.dense",), out="output.dense", norm="output.LayerNorm"),
    group_count="num_attention_heads",
    head_dim=None,
    head="SequenceClassification",
    removable=post_norm,
    residual=_residual,
)
