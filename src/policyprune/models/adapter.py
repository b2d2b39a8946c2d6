"""What can be removed from a model, in terms that no longer depend on its family."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from policyprune.errors import UsageError
from policyprune.models.residual import Axis, Hidden, Place, Residual, hidden_of

Size = Literal["groups", "heads", "features"]  # key/value heads, query heads, query features


def divisible(config: PreTrainedConfig) -> str:
    """Heads are independent of each other: there is no reason to keep them together."""
    return ""


def pre_norm(config: PreTrainedConfig) -> bool:
    """Norms stand in the branches alone: a layer without blocks passes its input on."""
    return True


def post_norm(config: PreTrainedConfig) -> bool:
    """Norms stand after the residual: a layer without blocks still computes something."""
    return False


@dataclass(frozen=True)
class Part:
    """Features of a linear module that belong to units: unit u owns [offset + u*width, offset + (u+1)*width)."""

    module: str
    axis: Axis
    width: int
    offset: int = 0


@dataclass(frozen=True)
class Attention:
    """Module names inside a layer. A unit is a key/value head with its query heads.

    `block` takes hidden states and returns (output, weights); it is replaced when a layer loses all its heads. It may
    hold `out` or end before it. Where one module projects to q, k and v it is named three times: it holds all q, then
    all k, then all v, or, `interleaved`, these three of one unit after another.

    `sizes` are the attributes of `block` that its forward reads and that count what is left. `together(config)` says
    why the attention of a layer can only go as a whole, "" where it need not. `adds_residual`: `block` takes the
    residual as its second argument and returns the sum. `norm` takes the residual plus the output of `out`, in families
    whose norms stand there.
    """

    block: str
    query: str
    key: str
    value: str
    out: str
    interleaved: bool = False
    sizes: tuple[tuple[str, Size], ...] = ()
    together: Callable[[PreTrainedConfig], str] = divisible
    adds_residual: bool = False
    norm: str | None = None


@dataclass(frozen=True)
class FeedForward:
    """Module names inside a layer. A unit is a channel between `inputs` and `out`.

    A module named twice in `inputs` holds gate and up one after the other. `block` takes and returns hidden states and
    holds all of them; it is replaced when a layer loses all its channels. Without such a module (None) the projections
    stay, with no channel between them. `adds_residual` and `norm` as for attention.
    """

    block: str | None
    inputs: tuple[str, ...]
    out: str
    adds_residual: bool = False
    norm: str | None = None


@dataclass(frozen=True)
class Family:
    """Where the layers, attention and FFN projections of a family are, and how a config states their sizes.

    `head_dim` is the config key of the head size where the stock class reads one, None where it divides the hidden
    size by the number of heads. `head` names the auto class that the family is usually loaded with.
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
    removable: Callable[[PreTrainedConfig], bool] = pre_norm  # whether a layer without blocks can be deleted
    layer_count: str = "num_hidden_layers"
    layer_lists: tuple[str, ...] = ("layer_types", "no_rope_layers")  # config keys with an entry per layer
    layer_index: str = "layer_idx"  # attribute of the modules that know which layer they are in
    residual: Callable[[PreTrainedConfig], Residual] | None = None  # where hidden channels are; None: they all stay

    @property
    def projections(self) -> tuple[Place, ...]:
        """The linear modules of the blocks that read and write hidden states, by their names inside a layer."""
        reading = dict.fromkeys((self.attention.query, self.attention.key, self.attention.value, *self.ffn.inputs))
        return (*((name, "in") for name in reading), (self.attention.out, "out"), (self.ffn.out, "out"))


@dataclass(frozen=True)
class Block:
    """One attention or FFN sub-layer: `count` units, `width` features of each at the input of the module `out`.

    `score_width` is the number of query features of a unit, over which attention scores are taken (0 for an FFN).
    `heads` is how many key/value heads a unit stands for: 1, or all where `together` says why they stay together.
    `sizes` are attributes of the module `path` with what each counts per unit. `norm` is the module whose input is the
    residual plus the output of `out`, None where a norm stands elsewhere.
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
    heads: int = 1
    together: str = ""
    sizes: tuple[tuple[str, int], ...] = ()
    adds_residual: bool = False
    norm: str | None = None

    def macs(self, length: int) -> int:
        """Multiply-accumulates of one unit for a sequence of `length` tokens (linear, scores, context)."""
        return length * self.macs_per_token + 2 * length * length * self.score_width


@dataclass(frozen=True)
class Adapter:
    """The blocks of a model in order: attention and FFN of layer 0, of layer 1, ...

    `fixed_params` is what the layers hold besides their units: norms and output biases. `removable_layers`: a layer
    that lost both blocks passes its input on, so it can be deleted; a block without units then adds no bias either.
    `hidden` are the channels of the residual stream, None where the family's table does not say where they are.
    """

    family: Family
    layers: tuple[str, ...]
    blocks: tuple[Block, ...]
    head_dim: int
    fixed_params: int
    removable_layers: bool = True
    hidden: Hidden | None = None


def family_of(config: PreTrainedConfig) -> Family:
    """The table for a config; UsageError for a family without one."""
    from policyprune.models.families import FAMILIES

    if config.model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UsageError(
            f"model.source: no family table for {config.model_type!r}, docs/add-a-model.md shows how to add it; "
            f"known: {known}"
        )
    return FAMILIES[config.model_type]


def adapt(model: PreTrainedModel) -> Adapter:
    """Name the units of a model; UsageError for a family without a table."""
    family = family_of(model.config)
    where = f"{model.base_model_prefix}.{family.layers}"
    count = len(list(model.get_submodule(where).children()))
    layers = tuple(f"{where}.{index}" for index in range(count))
    head_dim = _head_dim(model.config, family)
    blocks = [
        make(model, family, index, path, head_dim) for index, path in enumerate(layers) for make in (_attention, _ffn)
    ]
    total = sum(parameter.numel() for path in layers for parameter in model.get_submodule(path).parameters())
    in_units = sum(block.count * block.params_per_unit for block in blocks)
    removable = family.removable(model.config)
    hidden = None
    if family.residual is not None:
        table = family.residual(model.config)
        hidden = hidden_of(model, model.config, model.base_model_prefix, layers, family.projections, table)
    return Adapter(family, layers, tuple(blocks), head_dim, total - in_units, removable, hidden)


def _head_dim(config: PreTrainedConfig, family: Family) -> int:
    """Features of a head: a pruned model's config states them where its family's config does not."""
    stated: int | None = getattr(config, "attention_head_size", None)
    if stated is None and family.head_dim:
        stated = getattr(config, family.head_dim, None)
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
    q, k, v, out = (f"{path}.{name}" for name in (names.query, names.key, names.value, names.out))
    context, keys = features(model, out, "in"), features(model, k, "out")
    groups = (keys - context) // (2 * head_dim) if q == k else keys // head_dim
    width = context // max(groups, 1)
    if names.interleaved:
        parts = [Part(k, "out", width + 2 * head_dim)]
    else:
        start = (0, context, context + groups * head_dim) if q == k else (0, 0, 0)
        parts = [
            Part(q, "out", width, start[0]),
            Part(k, "out", head_dim, start[1]),
            Part(v, "out", head_dim, start[2]),
        ]
    parts.append(Part(out, "in", width))
    counted = {"groups": 1, "heads": width // head_dim, "features": width}
    sizes = tuple((attribute, counted[size]) for attribute, size in names.sizes)
    made = _block(model, layer, "attention", block, groups, width, tuple(parts), score_width=width)
    norm = f"{path}.{names.norm}" if names.norm else None
    made = replace(made, sizes=sizes, adds_residual=names.adds_residual, norm=norm)
    reason = names.together(model.config)
    return _joined(model, made, reason) if reason else made


def _joined(model: nn.Module, block: Block, reason: str) -> Block:
    """The same block as a single unit, which has all parameters of the module but the bias that remains."""
    assert block.path is not None
    own = sum(parameter.numel() for parameter in model.get_submodule(block.path).parameters())
    bias = getattr(model.get_submodule(block.out), "bias", None)
    return replace(
        block,
        count=1,
        width=block.count * block.width,
        parts=tuple(replace(part, width=block.count * part.width) for part in block.parts),
        params_per_unit=own - (bias.numel() if bias is not None else 0),
        macs_per_token=block.count * block.macs_per_token,
        score_width=block.count * block.score_width,
        heads=block.count,
        together=reason,
        sizes=(),
    )


def _ffn(model: PreTrainedModel, family: Family, layer: int, path: str, head_dim: int) -> Block:
    names = family.ffn
    block = f"{path}.{names.block}" if names.block else None
    if block and _is_empty(model, block):
        return Block(layer, "ffn", block, 0, 0, "", (), 0, 0, 0)
    channels = features(model, f"{path}.{names.out}", "in")
    parts = [
        Part(f"{path}.{name}", "out", 1, channels * names.inputs[:index].count(name))
        for index, name in enumerate(names.inputs)
    ]
    parts.append(Part(f"{path}.{names.out}", "in", 1))
    made = _block(model, layer, "ffn", block, channels, 1, tuple(parts), score_width=0)
    norm = f"{path}.{names.norm}" if names.norm else None
    return replace(made, adds_residual=names.adds_residual, norm=norm)


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
