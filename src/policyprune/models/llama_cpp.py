"""What llama.cpp must know of a LLaMA-like model: the hyper-parameters, and the weights by llama.cpp's names."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.models.residual import hidden_size

MODEL_TYPES = ("llama", "mistral")
ROPE_TYPES = ("default", "linear", "llama3")

# module in transformers -> name in llama.cpp
TOP = {"embed_tokens": "token_embd", "norm": "output_norm"}
ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
FFN = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
NORMS = {"attention": ("input_layernorm", "attn_norm"), "ffn": ("post_attention_layernorm", "ffn_norm")}


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """The hyper-parameters that are the same in all layers."""

    context_length: int
    width: int
    heads: int
    norm_epsilon: float
    rope_base: float
    vocabulary: int


def hyperparameters(model: PreTrainedModel) -> Hyperparameters:
    """Read them from the config."""
    config = model.config
    return Hyperparameters(
        context_length=config.max_position_embeddings,
        width=hidden_size(config),
        heads=config.num_attention_heads,
        norm_epsilon=config.rms_norm_eps,
        rope_base=float(config.rope_parameters["rope_theta"]),
        vocabulary=config.vocab_size,
    )


def obstacle(model: PreTrainedModel) -> str:
    """What llama.cpp's LLaMA cannot express of a model, in words; "" where it can express all of it."""
    config = model.config
    if config.model_type not in MODEL_TYPES or not type(model).__name__.endswith("ForCausalLM"):
        return f"it takes language models of type {' or '.join(MODEL_TYPES)}, this is {type(model).__name__}"
    if getattr(config, "sliding_window", None) is not None:
        return f"it has no sliding window for this type, the model has one of {config.sliding_window} tokens"
    if any(name.endswith(("_proj.bias", "self_attn.bias", "mlp.bias")) for name, _ in model.named_parameters()):
        return "biases of the projections are not written"
    if config.hidden_act not in ("silu", "swish"):
        return f"its FFN is gated by silu, the model's by {config.hidden_act}"
    kind = config.rope_parameters.get("rope_type", "default")
    return "" if kind in ROPE_TYPES else f"rotary embeddings of type {kind!r}, it takes {', '.join(ROPE_TYPES)}"


def rope_factors(model: PreTrainedModel, head_dim: int) -> Tensor | None:
    """What llama.cpp divides the plain rotary frequencies by, (head_dim / 2,); None where they are plain."""
    parameters = model.config.rope_parameters
    if parameters.get("rope_type", "default") == "default":
        return None
    plain = float(parameters["rope_theta"]) ** -(torch.arange(0, head_dim, 2).float() / head_dim)
    used: Tensor = model.base_model.rotary_emb.inv_freq  # type: ignore[union-attr, assignment]
    return plain / used.float().cpu()


def top_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights outside the layers, by llama.cpp's names; no `output` where it is the embedding."""
    weights = {name: model.base_model.get_submodule(path).weight for path, name in TOP.items()}
    head = model.get_output_embeddings().weight
    if head is not weights["token_embd"]:
        weights["output"] = head
    return weights  # type: ignore[return-value]


def block_weights(layer: torch.nn.Module, kind: str) -> dict[str, Tensor]:
    """The matrices of a layer's attention or FFN by llama.cpp's names, as transformers lays them out."""
    names = ATTENTION if kind == "attention" else FFN
    return {name: layer.get_submodule(path).weight for path, name in names.items()}  # type: ignore[misc]


def norm_weight(layer: torch.nn.Module, kind: str) -> tuple[str, Tensor]:
    """llama.cpp's name and the weight of the norm before a layer's attention or FFN."""
    path, name = NORMS[kind]
    return name, layer.get_submodule(path).weight  # type: ignore[return-value]
