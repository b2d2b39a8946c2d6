"""Parameters, multiply-accumulates and latency of models as they are."""

from collections.abc import Mapping
from functools import partial

import torch
from transformers import PreTrainedModel

from policyprune.evaluation.latency.rounds import in_turns
from policyprune.models.adapter import Adapter


def parameters(model: PreTrainedModel) -> int:
    """All parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def block_parameters(model: PreTrainedModel, adapter: Adapter) -> int:
    """Parameters of the transformer blocks."""
    return sum(parameter.numel() for path in adapter.layers for parameter in model.get_submodule(path).parameters())


def block_macs(adapter: Adapter, length: int) -> int:
    """Multiply-accumulates of the blocks for one sequence: linear layers and attention (full, not causal)."""
    return sum(block.count * block.macs(length) for block in adapter.blocks)


@torch.inference_mode()
def latency(
    models: Mapping[str, PreTrainedModel], batch_size: int, length: int, repeats: int
) -> dict[str, list[float]]:
    """Seconds of a forward pass of each model through the transformer without the vocabulary projection, per round.

    The models take turns, after a round of warm-up that does not count.
    """
    device = next(iter(models.values())).device
    calls = {name: partial(_forward, model, batch_size, length) for name, model in models.items()}
    return in_turns(calls, repeats, device, warm_ups=1)


def _forward(model: PreTrainedModel, batch_size: int, length: int) -> None:
    ids = torch.arange(batch_size * length, device=model.device).view(batch_size, length) % model.config.vocab_size
    model.base_model(input_ids=ids, use_cache=False)
