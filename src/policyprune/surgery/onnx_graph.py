"""The computation that an ONNX file holds: tensors in, tensors out, the key/value cache as plain tensors."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from policyprune.models.adapter import Adapter

Shapes = dict[str, dict[int, str]]


@dataclass(frozen=True, kw_only=True)
class Cached:
    """The key/value heads of one layer, (B, heads, past, size) each; `empty`: its attention was removed."""

    layer: int
    key: tuple[int, int]
    value: tuple[int, int]
    empty: bool


class Encoding(nn.Module):
    """input_ids, attention_mask (and token_type_ids) to the head's outputs."""

    def __init__(self, model: PreTrainedModel, outputs: tuple[str, ...], token_types: bool) -> None:
        super().__init__()
        self.model, self.outputs = model, outputs
        self.inputs = ("input_ids", "attention_mask", *(["token_type_ids"] if token_types else []))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors in the order of `inputs`, each (B, T)."""
        out = self.model(**dict(zip(self.inputs, tensors, strict=True)))
        return tuple(out[name] for name in self.outputs)

    def example(self, batch: int, length: int) -> tuple[Tensor, ...]:
        """Random arguments."""
        ids = torch.randint(self.model.config.vocab_size, (batch, length))
        masks = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        return (ids, *(masks[name] for name in self.inputs[1:]))

    def shapes(self) -> Shapes:
        """Names of the axes that vary, by input."""
        return {name: {0: "batch", 1: "sequence"} for name in self.inputs}


class Decoding(nn.Module):
    """One step of a decoder: new tokens and the cache of the past ones to logits and the cache of all of them.

    The past may be empty, so one graph serves prefill and decoding. Layers without attention have no cache.
    """

    def __init__(self, model: PreTrainedModel, layers: list[Cached]) -> None:
        super().__init__()
        self.model, self.layers = model, layers
        positions = "position_ids" in inspect.signature(model.forward).parameters
        self.plain = ("input_ids", "attention_mask", *(["position_ids"] if positions else []))
        names = [f"{cached.layer}.{part}" for cached in layers if not cached.empty for part in ("key", "value")]
        self.inputs = (*self.plain, *(f"past_key_values.{name}" for name in names))
        self.outputs = ("logits", *(f"present.{name}" for name in names))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """input_ids (B, T), attention_mask (B, past + T), position_ids (B, T), then keys and values of each layer."""
        count = len(self.plain)
        inputs = dict(zip(self.plain, tensors[:count], strict=True))
        past = iter(tensors[count:])
        length = tensors[count].shape[2]
        cache = DynamicCache()
        for cached in self.layers:
            if cached.empty:  # its stand-in still counts the tokens that have passed
                passed = self._zeros(tensors[0].shape[0], cached.key, length)
                cache.update(passed, passed, cached.layer)
            else:
                cache.update(next(past), next(past), cached.layer)
        out = self.model(**inputs, past_key_values=cache, use_cache=True)
        kept = [out.past_key_values.layers[cached.layer] for cached in self.layers if not cached.empty]
        return (out.logits, *(tensor for layer in kept for tensor in (layer.keys, layer.values)))

    def example(self, batch: int, length: int, past: int = 3) -> tuple[Tensor, ...]:
        """Random arguments, the cache included."""
        ids = torch.randint(self.model.config.vocab_size, (batch, length))
        positions = torch.arange(past, past + length).repeat(batch, 1)
        plain = {"attention_mask": torch.ones(batch, past + length, dtype=torch.long), "position_ids": positions}
        shapes = [shape for cached in self.layers if not cached.empty for shape in (cached.key, cached.value)]
        cache = [torch.randn(batch, heads, past, size) for heads, size in shapes]
        return (ids, *(plain[name] for name in self.plain[1:]), *cache)

    def shapes(self) -> Shapes:
        """Names of the axes that vary, by input."""
        lengths = {"input_ids": "sequence", "attention_mask": "total", "position_ids": "sequence"}
        plain = {name: {0: "batch", 1: lengths[name]} for name in self.plain}
        return {**plain, **{name: {0: "batch", 2: "past"} for name in self.inputs[len(self.plain) :]}}

    def no_past(self, batch: int) -> tuple[Tensor, ...]:
        """The cache before the first token."""
        shapes = [shape for cached in self.layers if not cached.empty for shape in (cached.key, cached.value)]
        return tuple(self._zeros(batch, shape, 0) for shape in shapes)

    def _zeros(self, batch: int, shape: tuple[int, int], length: int) -> Tensor:
        heads, size = shape
        return torch.zeros(batch, heads, length, size, dtype=self.model.dtype)


def graph_of(model: PreTrainedModel, adapter: Adapter, token_types: bool) -> Encoding | Decoding:
    """The graph of a float32 model on the CPU; a decoder gets its cache unless no layer has any attention left."""
    with torch.no_grad():
        out: Any = model(torch.zeros(1, 2, dtype=torch.long))
    if "start_logits" in out:
        return Encoding(model, ("start_logits", "end_logits"), token_types)
    cache = getattr(out, "past_key_values", None)
    empty = {block.layer for block in adapter.blocks if block.kind == "attention" and not block.count}
    if cache is None or len(empty) == len(adapter.layers) or not model.can_generate():
        return Encoding(model, ("logits",), token_types)
    layers = [
        Cached(layer=index, key=_heads(layer.keys), value=_heads(layer.values), empty=index in empty)
        for index, layer in enumerate(cache.layers)
    ]
    return Decoding(model, layers)


def _heads(cached: Tensor) -> tuple[int, int]:
    """Heads and their size from keys or values (B, heads, T, size)."""
    return cached.shape[1], cached.shape[3]
