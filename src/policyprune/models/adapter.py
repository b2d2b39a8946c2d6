"""What can be removed from a model, in terms that no longer depend on its family."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from policyprune.errors import UsageError

Axis = Literal["out", "in"]


@dataclass(frozen=True)
class Part:
    """Features of a linear module that belong to units: unit u owns [offset + u*width, offset + (u+1)*width)."""

    module: str
    axis: Axis
    width: int
    offset: int = 0


@dataclass(frozen=True)
class Attention:
    """Module names inside a layer, for separate q, k, v. A unit is a key/value head with its query heads.

    `block` takes hidden states and returns (output, weights); it is replaced when a layer loses all its heads. It may
    hold `out` or end before it.
    """

    block: str
    query: str
    key: str
    value: str
    out: str


@dataclass(frozen=True)
class FeedForward:
    """Module names inside a layer, for unfused projections. A unit is a channel between `inputs` and `out`.

    `block` takes and returns hidden states and holds both; it is replaced when a layer loses all its channels. Without
    such a module (None) the projections stay, with no channel between them.
    """

    block: str | None
    inputs: tuple[str, ...]
    out: str


@dataclass(frozen=True)
class Family:
    """Where the layers, attention and FFN projections of a family are, and how a config states their sizes."""

    model_types: tuple[str, ...]
    layers: str
    attention: Attention
    ffn: FeedForward
    group_count: str = "num_key_value_heads"
    head_count: str = "num_attention_heads"
    channel_count: str = "intermediate_size"


@dataclass(frozen=True)
class Block:
    """One attention or FFN sub-layer: `count` units, `width` features of each at the input of the module `out`.

    `score_width` is the number of query features of a unit, over which attention scores are taken (0 for an FFN).
    """

    layer: int
    kind: str
    path: str | None
    count: int
    width: int
    out: str
    parts: tuple[Part, ...]
    params_per_unit: int
    macs_per_token: int
    score_width: int

    def macs(self, length: int) -> int:
        """Multiply-accumulates of one unit for a sequence of `length` tokens (linear, scores, context)."""
        return length * self.macs_per_token + 2 * length * length * self.score_width


@dataclass(frozen=True)
class Adapter:
    """The blocks of a model in order: attention and FFN of layer 0, of layer 1, ...

    `fixed_params` is what the layers hold besides their units: norms and output biases.
    """

    family: Family
    layers: tuple[str, ...]
    blocks: tuple[Block, ...]
    head_dim: int
    fixed_params: int


def adapt(model: PreTrainedModel) -> Adapter:
    """Name the units of a model; UsageError for a family without a table."""
    from policyprune.models.families import FAMILIES

    kind = model.config.model_type
    if kind not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UsageError(
            f"model.source: no family table for {kind!r}, docs/add-a-model.md shows how to add it; known: {known}"
        )
    family = FAMILIES[kind]
    where = f"{model.base_model_prefix}.{family.layers}"
    count = len(list(model.get_submodule(where).children()))
    layers = tuple(f"{where}.{index}" for index in range(count))
    head_dim = _head_dim(model.config)
    blocks = [
        make(model, family, index, path, head_dim) for index, path in enumerate(layers) for make in (_attention, _ffn)
    ]
    total = sum(parameter.numel() for path in layers for parameter in model.get_submodule(path).parameters())
    in_units = sum(block.count * block.params_per_unit for block in blocks)
    return Adapter(family, layers, tuple(blocks), head_dim, total - in_units)


def _head_dim(config: PreTrainedConfig) -> int:
    """Features of a head: a pruned model's config states them where its family's config does not."""
    stated: int | None = getattr(config, "head_dim", None) or getattr(config, "attention_head_size", None)
    return stated or int(config.hidden_size // config.num_attention_heads)


def features(model: nn.Module, module: str, axis: Axis) -> int:
    """Size of a linear module along `axis`; GPT-2's Conv1D holds its weight the other way round."""
    linear = model.get_submodule(module)
    weight = linear.weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[0 if (axis == "out") != isinstance(linear, Conv1D) else 1]


def _attention(model: PreTrainedModel, family: Family, layer: int, path: str, head_dim: int) -> Block:
    names = family.attention
    block = f"{path}.{names.block}"
    if _is_empty(model, block):
        return Block(layer, "attention", block, 0, 0, "", (), 0, 0, 0)
    groups = features(model, f"{path}.{names.key}", "out") // head_dim
    width = features(model, f"{path}.{names.query}", "out") // max(groups, 1)
    parts = (
        Part(f"{path}.{names.query}", "out", width),
        Part(f"{path}.{names.key}", "out", head_dim),
        Part(f"{path}.{names.value}", "out", head_dim),
        Part(f"{path}.{names.out}", "in", width),
    )
    return _block(model, layer, "attention", block, groups, width, parts, score_width=width)


def _ffn(model: PreTrainedModel, family: Family, layer: int, path: str, head_dim: int) -> Block:
    names = family.ffn
    block = f"{path}.{names.block}" if names.block else None
    if block and _is_empty(model, block):
        return Block(layer, "ffn", block, 0, 0, "", (), 0, 0, 0)
    channels = features(model, f"{path}.{names.out}", "in")
    parts = (*(Part(f"{path}.{name}", "out", 1) for name in names.inputs), Part(f"{path}.{names.out}", "in", 1))
    return _block(model, layer, "ffn", block, channels, 1, parts, score_width=0)


def _is_empty(model: nn.Module, path: str) -> bool:
    """Whether pruning left nothing of a block (it is an EmptyBlock then, perhaps one from a checkpoint's own code)."""
    return type(model.get_submodule(path)).__name__ == "EmptyBlock"


def _block(
    model: nn.Module,
    layer: int,
    kind: str,
    path: str | None,
    count: int,
    width: int,
    parts: tuple[Part, ...],
    score_width: int,
) -> Block:
    macs = params = 0
    for part in parts:
        macs += part.width * features(model, part.module, "in" if part.axis == "out" else "out")
        if part.axis == "out" and getattr(model.get_submodule(part.module), "bias", None) is not None:
            params += part.width
    return Block(layer, kind, path, count, width, parts[-1].module, parts, params + macs, macs, score_width)
