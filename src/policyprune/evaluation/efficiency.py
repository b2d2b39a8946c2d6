"""Parameters, multiply-accumulates and latency of models as they are."""

import statistics
import time
from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

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
def latency(models: Mapping[str, PreTrainedModel], batch_size: int, length: int, repeats: int) -> dict[str, float]:
    """Median seconds of a forward pass through the transformer without the vocabulary projection, after a warm-up.

    The models take turns, so that a machine whose speed drifts treats them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for repeat in range(repeats + 1):
        for name, model in models.items():
            ids = (
                torch.arange(batch_size * length, device=model.device).view(batch_size, length)
                % model.config.vocab_size
            )
            _wait(model)
            began = time.perf_counter()
            model.base_model(input_ids=ids, use_cache=False)
            _wait(model)
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _wait(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
