"""Transformers whose layers differ in width. Also copied into checkpoints, so it needs torch and transformers alone."""

from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

QUERIES = "query_heads_per_group"  # in `per_layer_config`, where they are not as many as in the stock class


class EmptyBlock(nn.Module):
    """Stands where an attention or FFN block lost all its units.

    Where the output projection was inside the block, its bias is left; where it follows, it gets no features.
    As attention it still tells the key/value cache how many tokens have passed, with one number per token, since the
    cache of layer 0 is where transformers looks up the length. With `adds_residual`, the second argument is added.
    """

    def __init__(self, layer: int, kind: str, holds_out: bool, adds_residual: bool, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.layer, self.attention, self.holds_out, self.bias = layer, kind == "attention", holds_out, bias
        self.adds_residual = adds_residual

    @classmethod
    def in_place_of(
        cls, out: nn.Module, layer: int, kind: str, holds_out: bool, adds_residual: bool = False
    ) -> "EmptyBlock":
        """The block whose output projection is `out`, without its units; `holds_out`: the projection goes with it."""
        bias = getattr(out, "bias", None) if holds_out else None
        kept = nn.Parameter(bias.detach(), bias.requires_grad) if bias is not None else None
        return cls(layer, kind, holds_out, adds_residual, kept)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: object) -> object:
        """(B, T, d) -> (B, T, d) or (B, T, 0), and no attention weights where attention is expected to return them."""
        features = hidden_states.shape[-1] if self.holds_out else 0
        out = hidden_states.new_zeros(*hidden_states.shape[:-1], features)
        if self.bias is not None:
            out = out + self.bias
        if self.adds_residual:
            out = out + args[0]
        cache = kwargs.get("past_key_values", kwargs.get("layer_past"))
        if self.attention and cache is not None:
            passed = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(passed, passed, self.layer)  # type: ignore[attr-defined]
        return (out, None) if self.attention else out


class LayerConfig:
    """A config in which one layer reads sizes of its own; everything else is read from the model's config."""

    def __init__(self, config: Any, sizes: dict[str, int]) -> None:
        self.__dict__.update(_config=config, **sizes)

    def __getattr__(self, name: str) -> Any:
        if name == "_config":  # not there yet while being copied
            raise AttributeError(name)
        return getattr(self._config, name)


def numbers(groups: int, queries: int, width: int) -> dict[str, int]:
    """What attributes of attention may count, for `groups` key/value heads with `queries` query heads of `width` each.

    Of an FFN the groups are its channels.
    """
    heads = groups * queries
    return {"groups": groups, "queries": queries, "heads": heads, "features": heads * width}


def set_sizes(block: Any, sizes: list[list[str]], counted: dict[str, int]) -> None:
    """Set the attributes that a block's forward reads, each given with what it counts (`numbers`).

    "config.name" is what the block reads from its config.
    """
    for attribute, size in sizes:
        where, _, name = attribute.rpartition(".")
        if where == "config":
            config = block.config._config if isinstance(block.config, LayerConfig) else block.config
            block.config = LayerConfig(config, {name: counted[size]})
        else:
            setattr(block, name, counted[size])


def resize(model: nn.Module, table: dict[str, Any], per_layer: dict[str, dict[str, Any]]) -> None:
    """Give the layers of a freshly built dense model the widths in `per_layer`, before weights are loaded.

    `table` names the layers and, per kind of block, the config key that counts its groups (key/value heads, channels),
    its linear modules with the axis and what has features there, `groups` or `heads`, of `width` each, the output
    projection last, and the attributes that count what is left. A group has `queries` heads, or as many as `per_layer`
    says. `output_biases` in `per_layer` names the kinds of block whose output projection has a bias all the same.
    """
    layers = list(model.get_submodule(table["layers"]).children())
    for index, sizes in per_layer.items():
        layer = layers[int(index)]
        for kind in ("attention", "ffn"):
            block = table[kind]
            count, queries = sizes.get(block["count"]), sizes.get(QUERIES) if kind == "attention" else None
            if count is None and queries is not None:
                count = getattr(model.config, block["count"])  # transformers drops what is as in the stock class
            if kind in sizes.get("output_biases", ()):  # the stock class has none there
                plain: Any = layer.get_submodule(block["parts"][-1][0])
                plain.bias = nn.Parameter(plain.weight.new_zeros(plain.weight.shape[0]))
            if count == 0 and block["block"]:
                name = block["parts"][-1][0]
                out, holds_out = layer.get_submodule(name), name.startswith(block["block"] + ".")
                empty = EmptyBlock.in_place_of(out, int(index), kind, holds_out, block["adds_residual"])
                layer.set_submodule(block["block"], empty)
                if not holds_out:
                    layer.set_submodule(name, _resized(out, "in", 0))
            elif count is not None:
                counted = numbers(count, queries or block["queries"], block["width"])
                widths: dict[tuple[str, str], int] = {}
                for module, axis, owner in block["parts"]:
                    widths[module, axis] = widths.get((module, axis), 0) + counted[owner] * block["width"]
                for (module, axis), features in widths.items():
                    layer.set_submodule(module, _resized(layer.get_submodule(module), axis, features))
                if block["sizes"]:
                    set_sizes(layer.get_submodule(block["block"]), block["sizes"], counted)


def set_features(module: nn.Module, axis: str, count: int) -> None:
    """Let the attributes of a module that count its features on one side ("in" or "out") say `count`."""
    if isinstance(module, Conv1D):
        setattr(module, "nf" if axis == "out" else "nx", count)
    elif isinstance(module, nn.Linear):
        setattr(module, f"{axis}_features", count)
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = count
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = (count,)


def dimension(module: nn.Module, axis: str) -> int:
    """The dimension of a weight that holds the features on one side; Conv1D holds its weight the other way round."""
    return 0 if (axis == "out") != isinstance(module, Conv1D) else 1


def narrow(model: Any, table: dict[str, Any], count: int) -> None:
    """Give a freshly built model `count` hidden channels, before weights are loaded.

    `table` names the modules with a feature per channel, with the side, `inside` a layer and `outside` the layers.
    """
    layers = list(model.get_submodule(table["layers"]).children())
    found = [(own, "out") for layer in layers for own in layer.modules() if isinstance(own, EmptyBlock)]
    for owner, places in (
        (model, table["hidden"]["outside"]),
        *((layer, table["hidden"]["inside"]) for layer in layers),
    ):
        there = dict(owner.named_modules())
        found += [(there[name], axis) for name, axis in places if name in there]
    for module, axis in found:
        for name in ("weight", "bias") if axis == "out" else ("weight",):
            dense = getattr(module, name, None)
            if dense is not None:
                along = dimension(module, axis) if name == "weight" else 0
                setattr(module, name, nn.Parameter(dense.detach().narrow(along, 0, count).clone()))
        set_features(module, axis, count)
    model.tie_weights()


def _resized(linear: Any, axis: str, features: int) -> nn.Module:
    weight = linear.weight
    transposed = isinstance(linear, Conv1D)
    out, inside = reversed(weight.shape) if transposed else weight.shape
    out, inside = (features, inside) if axis == "out" else (out, features)
    fresh = Conv1D(out, inside) if transposed else nn.Linear(inside, out, bias=linear.bias is not None)
    return fresh.to(device=weight.device, dtype=weight.dtype)
