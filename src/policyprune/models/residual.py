"""The channels of the residual stream (the hidden size) of a model, which are the same in all layers."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from policyprune.models.family import Family, Place

KEPT_HIDDEN_SIZE = "kept_hidden_size"  # config key of a model whose class cannot be built with the smaller hidden size


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """The hidden channels of a model: `count` of them.

    `inside` are names inside a layer, `outside` those outside the layers, `parts` the modules of both that are there.
    `norms` are the modules whose statistics are taken over the channels; the stream enters the layers at `entry`.
    `params` and `macs_per_token` are what a channel costs in the transformer blocks. `scaled` and `obstacle` as in the
    table (`family.Residual`).
    """

    count: int
    entry: str
    norms: tuple[str, ...]
    inside: tuple[Place, ...]
    outside: tuple[Place, ...]
    parts: tuple[Place, ...]
    params: int
    macs_per_token: int
    scaled: bool
    obstacle: str


def hidden_size(config: PreTrainedConfig) -> int:
    """The number of hidden channels, also of a model whose config still states the dense number."""
    return int(getattr(config, KEPT_HIDDEN_SIZE, None) or config.hidden_size)


def hidden_of(model: PreTrainedModel, family: Family, layers: tuple[str, ...]) -> Hidden | None:
    """Find the hidden channels of a model whose layers are the modules `layers`; None where the table has none."""
    if family.residual is None:
        return None
    table = family.residual(model.config)
    inside: tuple[Place, ...] = (*family.projections, *((name, "out") for name in table.layer_norms))
    outside = _outside(model, family)
    modules = dict(model.named_modules())
    in_layers: list[Place] = [(f"{path}.{name}", axis) for path in layers for name, axis in inside]
    in_layers += [  # a block without units may still add a bias
        (name, "out")
        for path in layers
        for name, module in model.get_submodule(path).named_modules(prefix=path)
        if type(module).__name__ == "EmptyBlock" and module.bias is not None
    ]
    in_layers = [place for place in in_layers if place[0] in modules]
    norms = [f"{model.base_model_prefix}.{name}" for name in table.norms]
    norms += [f"{path}.{name}" for path in layers for name in table.layer_norms]
    count = hidden_size(model.config)
    params, macs = _costs(modules, in_layers, count)
    return Hidden(
        count=count,
        entry=layers[0],
        norms=tuple(name for name in norms if name in modules),
        inside=inside,
        outside=outside,
        parts=(*(place for place in outside if place[0] in modules), *in_layers),
        params=params,
        macs_per_token=macs,
        scaled=table.scaled,
        obstacle=table.obstacle,
    )


def _outside(model: PreTrainedModel, family: Family) -> tuple[Place, ...]:
    """The modules outside the layers that may have a feature per channel."""
    assert family.residual is not None
    table, base = family.residual(model.config), model.base_model_prefix
    reading: list[Place] = [(f"{base}.{name}", "in") for name in (*table.embeddings, *table.readers)]
    writing: list[Place] = [(f"{base}.{name}", "out") for name in (*table.norms, *table.writers)]
    return (*reading, *writing, *((name, "in") for name in table.heads))


def _costs(modules: dict[str, nn.Module], places: list[Place], count: int) -> tuple[int, int]:
    """Parameters and multiply-accumulates per token of one of `count` channels in the modules at `places`."""
    params = macs = 0
    for name, axis in places:
        weight: Any = getattr(modules[name], "weight", None)
        bias: Any = getattr(modules[name], "bias", None)
        features = weight.numel() // count if weight is not None else 0
        params += features + (bias is not None and axis == "out")
        macs += features if weight is not None and weight.dim() == 2 else 0
    return params, macs
