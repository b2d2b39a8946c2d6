"""BERT, and RoBERTa and ELECTRA, whose layers have the same names."""

from policyprune.models.adapter import Attention, Family, FeedForward, post_norm

BERT = Family(
    model_types=("bert", "roberta", "electra"),
    layers="encoder.layer",
    attention=Attention(
        block="attention.self",
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        out="attention.output.dense",
    ),
    ffn=FeedForward(block=None, inputs=("intermediate.dense",), out="output.dense"),
    group_count="num_attention_heads",
    head_dim=None,
    head="SequenceClassification",
    removable=post_norm,
)
