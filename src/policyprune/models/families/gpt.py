"""Decoders with names of their own: GPT-2, OPT, GPT-NeoX (Pythia), BLOOM and Falcon."""

from transformers import PreTrainedConfig

from policyprune.models.family import Attention, Family, FeedForward, Residual

ALIBI = "ALiBi slopes belong to positions in the row of heads"


GPT2 = Family(
    model_types=("gpt2",),
    layers="h",
    attention=Attention(  # q, k, v in one projection
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


def _opt_residual(config: PreTrainedConfig) -> Residual:
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
    residual=_opt_residual,
)

GPT_NEOX = Family(
    model_types=("gpt_neox",),
    layers="layers",
    attention=Attention(  # one projection holds q, k, v of a head, then those of the next
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

BLOOM = Family(  # its config states no number of channels
    model_types=("bloom",),
    layers="h",
    attention=Attention(
        block="self_attention",
        query="self_attention.query_key_value",
        key="self_attention.query_key_value",
        value="self_attention.query_key_value",
        out="self_attention.dense",
        interleaved=True,
        together=lambda config: ALIBI,
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

FALCON = Family(
    model_types=("falcon",),
    layers="h",
    attention=Attention(  # one projection holds the queries, key and value of a group (multi-query: one group)
        block="self_attention",
        query="self_attention.query_key_value",
        key="self_attention.query_key_value",
        value="self_attention.query_key_value",
        out="self_attention.dense",
        interleaved=True,
        sizes=(("num_heads", "heads"), ("num_kv_heads", "groups")),
        together=lambda config: ALIBI if config.alibi else "",
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
    onnx_obstacle=lambda config: (
        "Falcon's ALiBi is computed in bfloat16, which ONNX Runtime lacks" if config.alibi else ""
    ),
)
