"""What a family's table says: where its layers are, which linear modules own a unit, where hidden channels are.

A table is data of these classes (`models/families/`); `models/adapter.py` reads it against a model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedConfig

Axis = Literal["out", "in"]
Place = tuple[str, Axis]  # a module, and the side on which it has a feature per channel
Size = Literal["groups", "heads", "features", "queries"]  # key/value and query heads, query features, heads of a group


def no_obstacle(config: PreTrainedConfig) -> str:
    """Nothing stands in the way, whatever the config says."""
    return ""


def as_it_is(config: PreTrainedConfig) -> float:
    """The output of a block is added to the residual as it is."""
    return 1.0


def pre_norm(config: PreTrainedConfig) -> bool:
    """Norms stand in the branches alone: a layer without blocks passes its input on."""
    return True


def post_norm(config: PreTrainedConfig) -> bool:
    """Norms stand after the residual: a layer without blocks still computes something."""
    return False


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Module names inside a layer. A unit is a key/value head with its query heads.

    `block` takes hidden states and returns (output, weights); it is replaced when a layer loses all its heads. It may
    hold `out` or end before it. Where one module projects to q, k and v it is named three times: it holds all q, then
    all k, then all v, or, `interleaved`, these three of one unit after another.

    `sizes` are the attributes of `block` that its forward reads and that count what is left. Query heads can go without
    their group where `queries` is among them. `together(config)` says why the attention of a layer can only go as a
    whole, "" where it need not. `adds_residual`: `block` takes the residual as its second argument and returns the sum.
    `norm` takes the residual plus the output of `out`, `out_norm` that output alone before it is added, in families
    whose norms stand there.
    """

    block: str
    query: str
    key: str
    value: str
    out: str
    interleaved: bool = False
    sizes: tuple[tuple[str, Size], ...] = ()
    together: Callable[[PreTrainedConfig], str] = no_obstacle
    adds_residual: bool = False
    norm: str | None = None
    out_norm: str | None = None


@dataclass(frozen=True, kw_only=True)
class FeedForward:
    """Module names inside a layer. A unit is a channel between `inputs` and `out`.

    A module named twice in `inputs` holds gate and up one after the other. `block` takes and returns hidden states and
    holds all of them; it is replaced when a layer loses all its channels. Without such a module (None) the projections
    stay, with no channel between them. `adds_residual`, `norm` and `out_norm` as for attention.
    """

    block: str | None
    inputs: tuple[str, ...]
    out: str
    adds_residual: bool = False
    norm: str | None = None
    out_norm: str | None = None


@dataclass(frozen=True, kw_only=True)
class Residual:
    """Modules with a feature per hidden channel, besides the projections of attention and FFN.

    `layer_norms` stand inside a layer; `embeddings`, `writers` (projections onto the residual stream), `norms` and
    `readers` inside the base model; `heads` in the whole model. Names that a variant lacks are passed over. `scaled`:
    the stock class takes more than shapes from the hidden size. `obstacle` says why channels cannot go, "" where they
    can.
    """

    layer_norms: tuple[str, ...]
    embeddings: tuple[str, ...]
    norms: tuple[str, ...]
    writers: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    heads: tuple[str, ...] = ("lm_head", "score", "qa_outputs")
    scaled: bool = False
    obstacle: str = ""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where the layers, attention and FFN projections of a family are, and how a config states their sizes.

    `layers` is a path inside the base model. `group_count`, `head_count`, `channel_count` and `layer_count` are config
    keys. `head_dim` is the config key of the head size where the stock class reads one, None where it divides the
    hidden size by the number of heads. `head` names the auto class that the family is usually loaded with.
    `removable(config)`: whether a layer without blocks can be deleted. `layer_lists` are config keys with an entry per
    layer, `layer_index` is the attribute of modules that know which layer they are in. `residual(config)` says where
    hidden channels are; without it they all stay. `multiplier(config)` is what the output of a block is multiplied by
    before it is added. `onnx_obstacle(config)` says what ONNX Runtime lacks for a model.
    """

    model_types: tuple[str, ...]
    layers: str
    attention: Attention
    ffn: FeedForward
    group_count: str = "num_key_value_heads"
    head_count: str = "num_attention_heads"
    channel_count: str = "intermediate_size"
    head_dim: str | None = "head_dim"
    head: str = "CausalLM"
    removable: Callable[[PreTrainedConfig], bool] = pre_norm
    layer_count: str = "num_hidden_layers"
    layer_lists: tuple[str, ...] = ("layer_types", "no_rope_layers")
    layer_index: str = "layer_idx"
    residual: Callable[[PreTrainedConfig], Residual] | None = None
    multiplier: Callable[[PreTrainedConfig], float] = as_it_is
    onnx_obstacle: Callable[[PreTrainedConfig], str] = no_obstacle

    @property
    def projections(self) -> tuple[Place, ...]:
        """The linear modules of the blocks that read and write hidden states, by their names inside a layer."""
        reading = dict.fromkeys((self.attention.query, self.attention.key, self.attention.value, *self.ffn.inputs))
        return (*((name, "in") for name in reading), (self.attention.out, "out"), (self.ffn.out, "out"))
