"""Where a model holds the channels of its residual stream (the hidden size), which are the same in all layers."""

from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedConfig

Axis = Literal["out", "in"]
Place = tuple[str, Axis]  # a module, and the side on which it has a feature per channel

KEPT = "kept_hidden_size"  # config key of a model whose class cannot be built with the smaller hidden size


@dataclass(frozen=True)
class Residual:
    """Modules with a feature per hidden channel, besides the projections of attention and FFN.

    `layer_norms` stand inside a layer; `embeddings`, `writers` (projections onto the stream), `norms` and `readers`
    inside the base model; `heads` in the whole model. Names that a variant lacks are passed over. `scaled`: the stock
    class takes more than shapes from the hidden size. `obstacle` says why channels cannot go, "" where they can.
    """

    layer_norms: tuple[str, ...]
    embeddings: tuple[str, ...]
    norms: tuple[str, ...]
    writers: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    heads: tuple[str, ...] = ("lm_head", "score", "qa_outputs")
    scaled: bool = False
    obstacle: str = ""


@dataclass(frozen=True)
class Hidden:
    """The hidden channels of a model: `count` of them.

    `inside` are names inside a layer, `outside` those outside the layers, `parts` the modules of both that are there.
    `norms` are the modules whose statistics are taken over the channels; the stream enters the layers at `entry`.
    `params` and `macs_per_token` are what a channel costs in the transformer blocks. The rest as in the table.
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


def hidden_of(
    model: nn.Module,
    config: PreTrainedConfig,
    base: str,
    layers: tuple[str, ...],
    projections: tuple[Place, ...],
    table: Residual,
) -> Hidden:
    """Find the channels. `base` is the name of the base model, `projections` those of the blocks, inside a layer."""
    inside = (*projections, *((name, "out") for name in table.layer_norms))
    within: list[Place] = [(name, "in") for name in (*table.embeddings, *table.readers)]
    within += [(name, "out") for name in (*table.norms, *table.writers)]
    outside: tuple[Place, ...] = (
        *((f"{base}.{name}", axis) for name, axis in within),
        *((name, "in") for name in table.heads),
    )
    there = {name for name, _ in model.named_modules()}
    in_layers: list[Place] = [(f"{path}.{name}", axis) for path in layers for name, axis in inside]
    in_layers += [  # a block without units may still add a bias
        (f"{path}.{name}", "out")
        for path in layers
        for name, module in model.get_submodule(path).named_modules()
        if type(module).__name__ == "EmptyBlock" and module.bias is not None
    ]
    in_layers = [place for place in in_layers if place[0] in there]
    norms = [f"{base}.{name}" for name in table.norms]
    norms += [f"{path}.{name}" for path in layers for name in table.layer_norms]
    count = int(getattr(config, KEPT, None) or config.hidden_size)
    params = macs = 0
    for name, axis in in_layers:
        weight, bias = (getattr(model.get_submodule(name), own, None) for own in ("weight", "bias"))
        features = weight.numel() // count if weight is not None else 0
        params += features + (bias is not None and axis == "out")
        macs += features if weight is not None and weight.dim() == 2 else 0
    return Hidden(
        count,
        layers[0],
        tuple(name for name in norms if name in there),
        inside,
        outside,
        (*(place for place in outside if place[0] in there), *in_layers),
        params,
        macs,
        table.scaled,
        table.obstacle,
    )
