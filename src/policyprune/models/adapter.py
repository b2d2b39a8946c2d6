"""What can be removed from a model, in terms that no longer depend on its family."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from policyprune.errors import UsageError
from policyprune.models.families import family_of
from policyprune.models.family import Axis, Family, Size
from policyprune.models.residual import Hidden, hidden_of


@dataclass(frozen=True, kw_only=True)
class Part:
    """Features of a linear module that belong to units: unit u owns [offset + u*width, offset + (u+1)*width)."""

    module: str
    axis: Axis
    width: int
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class Block:
    """One attention or FFN sub-layer: `count` units, `width` features of each at the input of the module `out`.

    `path` is the module of the block, None where no module holds all of it. `score_width` is the number of query
    features of a unit, over which attention scores are taken (0 for an FFN). `heads` is how many key/value heads a unit
    stands for: 1, or all where `together` says why they stay together. `queries` is how many query heads share one.
    `sizes` are attributes of the module `path` with what each counts. `norm` is the module whose input is the residual
    plus the output of `out`, `out_norm` the one that norms that output alone before it is added, None where norms stand
    elsewhere; `multiplier` is what it is multiplied by instead. A block that lost all its units has a path and no
    parts.

    Units that are query heads (`models/query_heads.py`) belong to `groups` key/value heads, as many to each and one
    group after the other; all groups keep the same number. A group owns a unit of each part in `shared`, and costs
    `shared_params` and `shared_macs` per token, as long as it has a query head.
    """

    layer: int
    kind: str
    path: str | None
    count: int = 0
    width: int = 0
    out: str = ""
    parts: tuple[Part, ...] = ()
    params_per_unit: int = 0
    macs_per_token: int = 0
    score_width: int = 0
    heads: int = 1
    queries: int = 1
    together: str = ""
    sizes: tuple[tuple[str, Size], ...] = ()
    adds_residual: bool = False
    norm: str | None = None
    out_norm: str | None = None
    multiplier: float = 1.0
    groups: int = 0
    shared: tuple[Part, ...] = ()
    shared_params: int = 0
    shared_macs: int = 0

    @property
    def decisions(self) -> int:
        """How many decisions a search has on the units: one each, or one for a query head of every group."""
        return self.count // (self.groups or 1)

    @property
    def head_dim(self) -> int:
        """Features of a query head."""
        return self.width if self.groups else self.width // (self.heads * self.queries)

    @property
    def is_fused(self) -> bool:
        """Whether one module holds what a unit owns and what its group owns."""
        return any(part.module == shared.module for part in self.parts for shared in self.shared)

    def groups_of(self, kept: Tensor) -> Tensor:
        """The key/value heads (g,) that query heads `kept` (k,) leave, none where units are no query heads.

        UsageError where they are not the same number of each.
        """
        if not self.groups:
            return kept.new_empty(0)
        left = torch.bincount(kept // self.decisions, minlength=self.groups)
        if len(numbers := left[left > 0].unique()) > 1:
            raise UsageError(
                f"mask: the attention of layer {self.layer} keeps {int(numbers[0])} query heads of one key/value head "
                f"and {int(numbers[-1])} of another, all that stay have to keep the same number"
            )
        return left.nonzero().flatten()

    def heads_left(self, kept: int, groups: int) -> tuple[int, int]:
        """Key/value heads with `kept` units left, and query heads of each; `groups` is the number of `groups_of`."""
        if not self.groups:
            return kept * self.heads, self.queries
        return groups, kept // groups if groups else self.queries

    def macs(self, length: int) -> int:
        """Multiply-accumulates of one unit for a sequence of `length` tokens (linear, scores, context)."""
        return length * self.macs_per_token + 2 * length * length * self.score_width


@dataclass(frozen=True, kw_only=True)
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


def adapt(model: PreTrainedModel) -> Adapter:
    """Name the units of a model; UsageError for a family without a table."""
    family = family_of(model.config)
    list_path = f"{model.base_model_prefix}.{family.layers}"
    count = len(list(model.get_submodule(list_path).children()))
    layers = tuple(f"{list_path}.{index}" for index in range(count))
    head_dim = _head_dim(model.config, family)
    blocks: list[Block] = []
    for index in range(count):
        blocks += [_attention(model, family, index, layers[index], head_dim), _ffn(model, family, index, layers[index])]
    total = sum(parameter.numel() for path in layers for parameter in model.get_submodule(path).parameters())
    return Adapter(
        family=family,
        layers=layers,
        blocks=tuple(blocks),
        head_dim=head_dim,
        fixed_params=total - sum(block.count * block.params_per_unit for block in blocks),
        removable_layers=family.removable(model.config),
        hidden=hidden_of(model, family, layers),
    )


def features(model: nn.Module, module: str, axis: Axis) -> int:
    """Size of a linear module along `axis`; GPT-2's Conv1D holds its weight the other way round."""
    linear = model.get_submodule(module)
    weight = linear.weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[0 if (axis == "out") != isinstance(linear, Conv1D) else 1]


def _head_dim(config: PreTrainedConfig, family: Family) -> int:
    """Features of a head: a pruned model's config states them where its family's config does not."""
    stated: int | None = getattr(config, "attention_head_size", None)
    if stated is None and family.head_dim:
        stated = getattr(config, family.head_dim, None)
    return stated or int(config.hidden_size // config.num_attention_heads)


def _attention(model: PreTrainedModel, family: Family, layer: int, path: str, head_dim: int) -> Block:
    names = family.attention
    block_path = f"{path}.{names.block}"
    if _is_empty(model, block_path):
        return Block(layer=layer, kind="attention", path=block_path)
    q, k, v, out = (f"{path}.{name}" for name in (names.query, names.key, names.value, names.out))
    context, keys = features(model, out, "in"), features(model, k, "out")
    groups = (keys - context) // (2 * head_dim) if q == k else keys // head_dim
    width = context // max(groups, 1)
    if names.interleaved:
        parts = [Part(module=k, axis="out", width=width + 2 * head_dim)]
    else:
        key_offset, value_offset = (context, context + groups * head_dim) if q == k else (0, 0)
        parts = [
            Part(module=q, axis="out", width=width),
            Part(module=k, axis="out", width=head_dim, offset=key_offset),
            Part(module=v, axis="out", width=head_dim, offset=value_offset),
        ]
    parts.append(Part(module=out, axis="in", width=width))
    params, macs = costs(model, parts)
    block = Block(
        layer=layer,
        kind="attention",
        path=block_path,
        count=groups,
        width=width,
        out=out,
        parts=tuple(parts),
        params_per_unit=params,
        macs_per_token=macs,
        score_width=width,
        queries=width // head_dim,
        sizes=names.sizes,
        adds_residual=names.adds_residual,
        norm=f"{path}.{names.norm}" if names.norm else None,
        out_norm=f"{path}.{names.out_norm}" if names.out_norm else None,
        multiplier=family.multiplier(model.config),
    )
    reason = names.together(model.config)
    return _joined(model, block, reason) if reason else block


def _joined(model: nn.Module, block: Block, reason: str) -> Block:
    """The same block as a single unit, which has all parameters of the module but the bias that remains."""
    assert block.path is not None
    total = sum(parameter.numel() for parameter in model.get_submodule(block.path).parameters())
    bias = getattr(model.get_submodule(block.out), "bias", None)
    return replace(
        block,
        count=1,
        width=block.count * block.width,
        parts=tuple(replace(part, width=block.count * part.width) for part in block.parts),
        params_per_unit=total - (bias.numel() if bias is not None else 0),
        macs_per_token=block.count * block.macs_per_token,
        score_width=block.count * block.score_width,
        heads=block.count,
        together=reason,
        sizes=(),
    )


def _ffn(model: PreTrainedModel, family: Family, layer: int, path: str) -> Block:
    names = family.ffn
    block_path = f"{path}.{names.block}" if names.block else None
    if block_path and _is_empty(model, block_path):
        return Block(layer=layer, kind="ffn", path=block_path)
    out = f"{path}.{names.out}"
    channels = features(model, out, "in")
    parts = [
        Part(module=f"{path}.{name}", axis="out", width=1, offset=channels * names.inputs[:index].count(name))
        for index, name in enumerate(names.inputs)
    ]
    parts.append(Part(module=out, axis="in", width=1))
    params, macs = costs(model, parts)
    return Block(
        layer=layer,
        kind="ffn",
        path=block_path,
        count=channels,
        width=1,
        out=out,
        parts=tuple(parts),
        params_per_unit=params,
        macs_per_token=macs,
        adds_residual=names.adds_residual,
        norm=f"{path}.{names.norm}" if names.norm else None,
        out_norm=f"{path}.{names.out_norm}" if names.out_norm else None,
        multiplier=family.multiplier(model.config),
    )


def _is_empty(model: nn.Module, path: str) -> bool:
    """Whether pruning left nothing of a block (it is an EmptyBlock then, perhaps one from a checkpoint's own code)."""
    return type(model.get_submodule(path)).__name__ == "EmptyBlock"


def costs(model: nn.Module, parts: Iterable[Part]) -> tuple[int, int]:
    """Parameters and multiply-accumulates per token of one unit, in the linear modules that it owns a part of."""
    biases = macs = 0
    for part in parts:
        macs += part.width * features(model, part.module, "in" if part.axis == "out" else "out")
        if part.axis == "out" and getattr(model.get_submodule(part.module), "bias", None) is not None:
            biases += part.width
    return biases + macs, macs
