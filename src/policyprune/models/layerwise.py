"""Walk through a model layer by layer, so that each layer sees what the layers before it, already changed, produce.

Whoever walks learns of the tokens that count alone: no metric and no tuning sees padding.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from policyprune.models.adapter import Adapter, Block

Others = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class Layer:
    """A layer and its inputs: hidden states (B, T, d) per batch, and the other arguments that the model passes it.

    `counts` says which tokens (B * T,) of each batch count. Whoever has run the layer in its final state may leave the
    outputs in `produced`; they are not computed again then.
    """

    index: int
    module: nn.Module
    hidden: list[Tensor]
    others: list[Others]
    counts: list[Tensor]
    produced: list[Tensor] | None = None

    def output(self, batch: int) -> Tensor:
        """Run the layer as it is now on one of the batches."""
        args, named = self.others[batch]
        out = self.module(self.hidden[batch], *args, **named)
        states = out[0] if isinstance(out, tuple) else out
        assert isinstance(states, Tensor)
        return states

    def outputs(self) -> list[Tensor]:
        """Run the layer as it is now on every batch."""
        return [self.output(batch) for batch in range(len(self.hidden))]

    def counted(self, states: list[Tensor]) -> list[Tensor]:
        """The tokens (N, d) that count among hidden states (B, T, d) of each batch."""
        return [_rows(own, rows) for own, rows in zip(states, self.counts, strict=True)]


@torch.no_grad()
def walk(
    model: PreTrainedModel, adapter: Adapter, batches: list[dict[str, Tensor]], first_token: bool = False
) -> Iterator[Layer]:
    """Yield the layers in order. What the caller changes in a layer shows in the inputs of the next one.

    All tokens but padding count; with `first_token` the first one of each sequence alone in the last layer, since a
    classifier looks at no other. No layer's hidden states but the current ones are held.
    """
    modules = [model.get_submodule(path) for path in adapter.layers]
    hidden, others = _arguments(model, modules, batches)
    for index, module in enumerate(modules):
        last = index == len(modules) - 1
        layer = Layer(index, module, hidden, others[index], [_counts(own, first_token and last) for own in batches])
        yield layer
        hidden = layer.produced if layer.produced is not None else layer.outputs()


def _arguments(
    model: PreTrainedModel, modules: list[nn.Module], batches: list[dict[str, Tensor]]
) -> tuple[list[Tensor], list[list[Others]]]:
    """The first layer's hidden states per batch, and per layer and batch the other arguments.

    A model hands these on whatever its layers compute: the first layer alone runs, its output stands for the others'.
    """
    others: list[list[Others]] = [[] for _ in modules]
    hidden: list[Tensor] = []
    first: list[Any] = []

    def record(index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            named = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            others[index].append((args[1:], named))
            if index == 0:
                hidden.append(args[0] if args else kwargs["hidden_states"])

        return hook

    def hold(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        first[:] = [out]

    handles = [module.register_forward_pre_hook(record(i), with_kwargs=True) for i, module in enumerate(modules)]
    handles.append(modules[0].register_forward_hook(hold))
    skipped = [(module, vars(module).get("forward")) for module in modules[1:]]  # accelerate's, on several devices
    try:
        for module, _ in skipped:
            module.forward = lambda *args, **kwargs: first[0]
        for batch in batches:
            model.base_model(**{name: value.to(model.device) for name, value in batch.items()}, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
        for module, forward in skipped:
            del module.forward
            if forward is not None:
                module.forward = forward
    return hidden, others


def watch(model: nn.Module, layer: Layer, names: list[str], final: bool) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Run the layer on every batch; what goes in (tokens, F) and out (tokens, d) of its modules `names`, by name.

    The tokens are those that count. `final`: the layer is in its final state, so its outputs are left in `produced`.
    """
    held: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Callable[..., None]:
        def hold(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            held[name] = _rows(args[0], rows), _rows(out, rows)  # copies: Falcon adds to the output in place afterwards

        return hold

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    produced: list[Tensor] = []
    try:
        for batch in range(len(layer.hidden)):
            rows = layer.counts[batch]  # of the batch that the hooks are about to see
            out = layer.output(batch)
            if final:
                produced.append(out)
            yield dict(held)
            held.clear()
    finally:
        for handle in handles:
            handle.remove()
    if final:
        layer.produced = produced


def _rows(states: Tensor, rows: Tensor) -> Tensor:
    """States (B, T, d), or flat ones (B * T, d) as in OPT's FFN, of the tokens `rows` (B * T,): (N, d), a copy."""
    return states.flatten(0, -2)[rows.to(states.device)]


def _counts(batch: dict[str, Tensor], first_token: bool) -> Tensor:
    """Which tokens (B * T,) of a batch count: not padding, or the first one of each sequence alone."""
    mask = batch.get("attention_mask")
    rows = torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()
    if first_token:
        rows = rows.clone()
        rows[:, 1:] = False
    return rows.flatten()


def projection(model: nn.Module, block: Block) -> tuple[Tensor, Tensor | None]:
    """Weight (d, features) and bias (d,) of a block's output projection."""
    linear = model.get_submodule(block.out)
    weight, bias = linear.weight, linear.bias
    assert isinstance(weight, Tensor)
    weight = weight.detach()
    return (weight.T if isinstance(linear, Conv1D) else weight), (bias.detach() if isinstance(bias, Tensor) else None)


def columns_of(block: Block, units: Tensor) -> Tensor:
    """The input features of a block's output projection that belong to `units` (k,): (k * width,)."""
    return (units[:, None] * block.width + torch.arange(block.width)).flatten()
