"""Transformers whose layers differ in width. Also copied into checkpoints, so it needs torch and transformers alone."""

from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class EmptyBlock(nn.Module):
    """Stands where an attention or FFN block lost all its units: adds nothing but the output bias to the residual.

    As attention it still tells the key/value cache how many tokens have passed, with one number per token, since the
    cache of layer 0 is where transformers looks up the length.
    """

    def __init__(self, layer: int, kind: str, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.layer, self.attention, self.bias = layer, kind == "attention", bias

    @classmethod
    def in_place_of(cls, out: nn.Module, layer: int, kind: str) -> "EmptyBlock":
        """The block whose output projection is `out`, without its units."""
        bias = getattr(out, "bias", None)
        return cls(layer, kind, nn.Parameter(bias.detach(), bias.requires_grad) if bias is not None else None)

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> object:
        """(B, T, d) -> (B, T, d), and no attention weights where attention is expected to return them."""
        out = hidden_states.new_zeros(hidden_states.shape)
        if self.bias is not None:
            out = out + self.bias
        cache = kwargs.get("past_key_values")
        if self.attention and cache is not None:
            passed = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(passed, passed, self.layer)  # type: ignore[attr-defined]
        return (out, None) if self.attention else out


def resize(model: nn.Module, table: dict[str, Any], per_layer: dict[str, dict[str, int]]) -> None:
    """Give the layers of a freshly built dense model the widths in `per_layer`, before weights are loaded.

    `table` names the layers and, per kind of block, the config key that counts its units and its linear modules with
    the axis and the number of features per unit; the output projection comes last.
    """
    layers = list(model.get_submodule(table["layers"]).children())
    for index, sizes in per_layer.items():
        layer = layers[int(index)]
        for kind in ("attention", "ffn"):
            block = table[kind]
            count = sizes.get(block["count"])
            if count == 0:
                out = layer.get_submodule(block["parts"][-1][0])
                layer.set_submodule(block["block"], EmptyBlock.in_place_of(out, int(index), kind))
            elif count is not None:
                widths: dict[tuple[str, str], int] = {}
                for module, axis, width in block["parts"]:
                    widths[module, axis] = widths.get((module, axis), 0) + width * count
                for (module, axis), features in widths.items():
                    layer.set_submodule(module, _resized(layer.get_submodule(module), axis, features))


def _resized(linear: Any, axis: str, features: int) -> nn.Module:
    weight = linear.weight
    transposed = isinstance(linear, Conv1D)
    out, inside = reversed(weight.shape) if transposed else weight.shape
    out, inside = (features, inside) if axis == "out" else (out, features)
    fresh = Conv1D(out, inside) if transposed else nn.Linear(inside, out, bias=linear.bias is not None)
    return fresh.to(device=weight.device, dtype=weight.dtype)
