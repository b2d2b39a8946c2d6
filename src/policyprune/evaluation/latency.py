"""Time of forward passes, of whole models and of their layers alone: they take turns, and say how far to trust them."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from policyprune.config.schema import Latency, LatencyBudget
from policyprune.evaluation.measures import Measure
from policyprune.models.adapter import Adapter, adapt
from policyprune.pruning.budget.budget import Budget

LayerCall = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]  # a layer and its arguments


def latencies(models: Mapping[str, PreTrainedModel], options: Latency) -> Iterator[tuple[str, Measure]]:
    """Yield (name, measure) for each batch size: each model's latency over the first one's, and in milliseconds."""
    for batch_size in options.batch_sizes if options.repeats else ():
        seconds = forward_seconds(models, batch_size, options.length, options.repeats)
        protocol = _protocol(batch_size, options.length, options.repeats)
        yield from ratios("latency_ratio", seconds, next(iter(models)), protocol)
        yield from times("latency", seconds, protocol)


def kept_latency(
    options: LatencyBudget, dense: PreTrainedModel, smaller: tuple[str, PreTrainedModel], budget: Budget, mask: Tensor
) -> Iterator[tuple[str, Measure]]:
    """Yield (name, measure): milliseconds of the layers of both models, and the promised and achieved share.

    `mask` (n,) is the one of the smaller model, which `budget` promised a share of the dense model's latency.
    """
    name, model = smaller
    shape = options.batch_size, options.sequence_length, options.repeats
    seconds = block_seconds({"dense": dense, name: model}, *shape)
    protocol = _protocol(*shape)
    yield from times("block_latency", seconds, protocol)
    left = float((budget.pool_limit - budget.spent(mask.to(budget.cost.device))).sum())
    promised = options.keep - left / len(adapt(dense).layers)
    protocol = {**protocol, "keep": options.keep}
    yield name, Measure("promised_block_latency_share", promised, "", protocol)
    yield from ratios("block_latency_share", seconds, "dense", protocol)


def forward_seconds(
    models: Mapping[str, PreTrainedModel], batch_size: int, length: int, repeats: int
) -> dict[str, list[float]]:
    """Seconds of a forward pass of each model, without the vocabulary projection, in each round after a warm-up."""
    device = next(iter(models.values())).device
    calls = {name: partial(_forward, model, batch_size, length) for name, model in models.items()}
    return in_turns(calls, repeats, device, warm_ups=1)


def block_seconds(
    models: Mapping[str, PreTrainedModel], batch_size: int, length: int, repeats: int
) -> dict[str, list[float]]:
    """Seconds of all layers of each model, without embeddings and heads, in each round after a warm-up."""
    calls = {name: layer_calls(model, adapt(model), batch_size, length) for name, model in models.items()}
    device = next(iter(models.values())).device
    return in_turns({name: partial(run_layers, layers) for name, layers in calls.items()}, repeats, device)


@torch.inference_mode()
def layer_calls(model: PreTrainedModel, adapter: Adapter, batch_size: int, length: int) -> list[LayerCall]:
    """Each layer with the arguments that it gets in a forward of (batch_size, length) random tokens, no cache."""
    calls: list[LayerCall] = []

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


def run_layers(calls: Sequence[LayerCall]) -> None:
    """Run layers on the arguments that were recorded for them."""
    for module, args, kwargs in calls:
        module(*args, **kwargs)


def _forward(model: PreTrainedModel, batch_size: int, length: int) -> None:
    ids = torch.arange(batch_size * length, device=model.device).view(batch_size, length) % model.config.vocab_size
    model.base_model(input_ids=ids, use_cache=False)


def _protocol(batch_size: int, length: int, repeats: int) -> dict[str, Any]:
    return {"batch_size": batch_size, "length": length, "repeats": repeats, "threads": torch.get_num_threads()}


@torch.inference_mode()
def in_turns(
    actions: Mapping[Any, Callable[[], object]], repeats: int, device: torch.device, warm_ups: int = 2
) -> dict[Any, list[float]]:
    """Seconds of each action in every round, after `warm_ups` rounds that do not count.

    The actions take turns, so that a machine whose speed drifts treats them alike.
    """
    seconds: dict[Any, list[float]] = {name: [] for name in actions}
    for repeat in range(warm_ups + repeats):
        for name, action in actions.items():
            _wait(device)
            began = time.perf_counter()
            action()
            _wait(device)
            if repeat >= warm_ups:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def relative(seconds: Mapping[Any, Sequence[float]], to: Any) -> dict[Any, float]:
    """Median over the rounds of each action's time over that of the action `to` in the same round."""
    return {name: statistics.median(_paired(values, seconds[to])) for name, values in seconds.items()}


def spread(values: Sequence[float]) -> float | None:
    """Interquartile range over the median of some rounds; None for one round, which says nothing of it."""
    if len(values) < 2:
        return None
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / median


def ratios(
    metric: str, seconds: Mapping[str, Sequence[float]], to: str, protocol: Mapping[str, Any]
) -> Iterator[tuple[str, Measure]]:
    """Yield (name, measure) for all but `to`: `relative`, which a machine with other work changes little.

    `spread` in the protocol is that of the rounds.
    """
    for name, value in relative(seconds, to).items():
        if name != to:
            yield name, Measure(metric, value, "", {**protocol, "spread": spread(_paired(seconds[name], seconds[to]))})


def times(
    metric: str, seconds: Mapping[str, Sequence[float]], protocol: Mapping[str, Any]
) -> Iterator[tuple[str, Measure]]:
    """Yield (name, measure): the median over the rounds, ms, with `spread` in the protocol."""
    for name, values in seconds.items():
        yield name, Measure(metric, 1e3 * statistics.median(values), "ms", {**protocol, "spread": spread(values)})


def _paired(values: Sequence[float], references: Sequence[float]) -> list[float]:
    return [value / reference for value, reference in zip(values, references, strict=True)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
