"""Encoders: BERT, with RoBERTa and ELECTRA, whose layers have the same names, and DistilBERT."""

from transformers import PreTrainedConfig

from policyprune.models.family import Attention, Family, FeedForward, Residual, post_norm


def _bert_residual(config: PreTrainedConfig) -> Residual:
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
    residual=_bert_residual,
)

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
