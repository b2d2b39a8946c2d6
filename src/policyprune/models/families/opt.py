"""OPT, whose FFN is not a module of its own."""

from transformers import PreTrainedConfig

from policyprune.models.adapter import Attention, Family, FeedForward
from policyprune.models.residual import Residual


def _residual(config: PreTrainedConfig) -> Residual:
    projected = config.word_embed_proj_dim != config.hidden_size  # embeddings and head are narrower then
    bare = config.do_layer_norm_before and config._remove_final_layer_norm
    return Residual(
        layer_norms=("self_attn_layer_norm", "final_layer_norm"),
        embeddings=("decoder.embed_positions", *([] if projected else ["decoder.embed_tokens"])),
        norms=("decoder.final_layer_norm",),
        writers=("decoder.project_in",),
        readers=("decoder.project_out",),
        heads=() if projected else ("lm_head", "score", "qa_outputs"),
        obstacle="no norm stands between the last layer and the head" if bare else "",
    )


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
    residual=_residual,
)
