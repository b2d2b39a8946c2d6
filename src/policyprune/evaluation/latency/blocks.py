"""Time of the transformer layers alone, without embeddings and heads."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from policyprune.evaluation.latency.rounds import in_turns
from policyprune.models.adapter import Adapter, adapt

Call = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


@torch.inference_mode()
def layer_calls(model: PreTrainedModel, adapter: Adapter, batch_size: int, length: int) -> list[Call]:
    """Each layer with the arguments that it gets in a forward of (batch_size, length) random tokens, no cache."""
    calls: list[Call] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((module, args, kwargs))

    modules = [model.get_submodule(path) for path in adapter.layers]
    handles = [module.register_forward_pre_hook(record, with_kwargs=True) for module in modules]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (batch_size, length), generator=generator).to(model.device)
    try:
        model.base_model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def run(calls: Sequence[Call]) -> None:
    """Run layers on the arguments that were recorded for them."""
    for module, args, kwargs in calls:
        module(*args, **kwargs)


def block_seconds(
    models: Mapping[str, PreTrainedModel], batch_size: int, length: int, repeats: int
) -> dict[str, list[float]]:
    """Seconds of all layers of each model, round by round."""
    calls = {name: layer_calls(model, adapt(model), batch_size, length) for name, model in models.items()}
    device = next(iter(models.values())).device
    return in_turns({name: partial(run, own) for name, own in calls.items()}, repeats, device)
