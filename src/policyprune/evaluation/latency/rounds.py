"""Times of several actions that take turns, and how far they can be trusted."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from policyprune.evaluation.measures import Measure


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
