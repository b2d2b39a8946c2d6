"""Walk through a model layer by layer, so that each layer sees what the layers before it, already changed, produce.

Importance scores and tunings take what they measure from here, and so never from padding.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from policyprune.models.adapter import Adapter, Block

Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # positional and named, without the hidden states


@dataclass(kw_only=True)
class Layer:
    """A layer and its inputs: hidden states (B, T, d) per batch, and the other arguments that the model passes it.

    `token_masks` (B * T,) of each batch are true where a token counts. A caller who has run the layer in its final
    state may leave the outputs in `produced`; they are not computed again then.
    """

    index: int
    module: nn.Module
    hidden: list[Tensor]
    arguments: list[Arguments]
    token_masks: list[Tensor]
    produced: list[Tensor] | None = None

    def output(self, batch: int) -> Tensor:
        """Run the layer as it is now on one of the batches."""
        args, kwargs = self.arguments[batch]
        out = self.module(self.hidden[batch], *args, **kwargs)
        states = out[0] if isinstance(out, tuple) else out
        assert isinstance(states, Tensor)
        return states

    def outputs(self) -> list[Tensor]:
        """Run the layer as it is now on every batch."""
        return [self.output(batch) for batch in range(len(self.hidden))]

    def counted(self, states: list[Tensor]) -> list[Tensor]:
        """The tokens (N, d) that count among hidden states (B, T, d) of each batch."""
        return [_tokens(of_batch, mask) for of_batch, mask in zip(states, self.token_masks, strict=True)]


@torch.no_grad()
def walk(
    model: PreTrainedModel, adapter: Adapter, batches: list[dict[str, Tensor]], first_token: bool = False
) -> Iterator[Layer]:
    """Yield the layers in order. What the caller changes in a layer shows in the inputs of the next one.

    All tokens but padding count; with `first_token` the first one of each sequence alone in the last layer, since a
    classifier looks at no other. Only the current layer's hidden states are held.
    """
    modules = [model.get_submodule(path) for path in adapter.layers]
    hidden, arguments = _arguments(model, modules, batches)
    for index, module in enumerate(modules):
        only_first = first_token and index == len(modules) - 1
        token_masks = [_token_mask(batch, only_first) for batch in batches]
        layer = Layer(index=index, module=module, hidden=hidden, arguments=arguments[index], token_masks=token_masks)
        yield layer
        hidden = layer.produced if layer.produced is not None else layer.outputs()


def _arguments(
    model: PreTrainedModel, modules: list[nn.Module], batches: list[dict[str, Tensor]]
) -> tuple[list[Tensor], list[list[Arguments]]]:
    """The first layer's hidden states per batch, and per layer and batch the other arguments.

    The model passes these on whatever its layers compute. So only the first layer runs, and its output stands for that
    of the others.
    """
    arguments: list[list[Arguments]] = [[] for _ in modules]
    hidden: list[Tensor] = []
    first_output: list[Any] = []

    def record(index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            arguments[index].append((args[1:], {name: kwargs[name] for name in kwargs if name != "hidden_states"}))
            if index == 0:
                hidden.append(args[0] if args else kwargs["hidden_states"])

        return hook

    def hold(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        first_output[:] = [out]

    handles = [module.register_forward_pre_hook(record(i), with_kwargs=True) for i, module in enumerate(modules)]
    handles.append(modules[0].register_forward_hook(hold))
    forwards = [vars(module).get("forward") for module in modules[1:]]  # accelerate's, on several devices
    try:
        for module in modules[1:]:
            module.forward = lambda *args, **kwargs: first_output[0]
        for batch in batches:
            model.base_model(**{name: value.to(model.device) for name, value in batch.items()}, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
        for module, forward in zip(modules[1:], forwards, strict=True):
            vars(module).pop("forward", None)
            if forward is not None:
                module.forward = forward
    return hidden, arguments


def watch(model: nn.Module, layer: Layer, names: list[str], final: bool) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Run the layer on every batch; yield the input (tokens, F) and output (tokens, d) of the modules `names`, by name.

    The layer itself may be among them. The tokens are those that count. `final`: the layer is in its final state, so
    its outputs are left in `produced`.
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Callable[..., None]:
        def hold(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            states = out[0] if isinstance(out, tuple) else out  # of a layer
            seen[name] = _tokens(args[0], mask), _tokens(states, mask)  # copies: Falcon adds in place later

        return hold

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    produced: list[Tensor] = []
    try:
        for batch in range(len(layer.hidden)):
            mask = layer.token_masks[batch]  # of the batch that the hooks are about to see
            out = layer.output(batch)
            if final:
                produced.append(out)
            yield dict(seen)
            seen.clear()
    finally:
        for handle in handles:
            handle.remove()
    if final:
        layer.produced = produced


def _tokens(states: Tensor, mask: Tensor) -> Tensor:
    """A copy (N, d) of states (B, T, d), or of flat ones (B * T, d) as in OPT's FFN, where `mask` (B * T,) is true."""
    return states.flatten(0, -2)[mask.to(states.device)]


def _token_mask(batch: dict[str, Tensor], only_first: bool) -> Tensor:
    """Which tokens (B * T,) of a batch count: not padding, or only the first one of each sequence."""
    attention_mask = batch.get("attention_mask")
    mask = torch.ones_like(batch["input_ids"], dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if only_first:
        mask = mask.clone()
        mask[:, 1:] = False
    return mask.flatten()


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
