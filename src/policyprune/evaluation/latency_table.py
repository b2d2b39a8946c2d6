"""The time of a transformer layer by what is left of it: measured once per machine and shape, then kept in a file."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from policyprune.config.schema import Budget, Granularity, LatencyBudget, Model, Task
from policyprune.evaluation.latency import in_turns, layer_calls, relative, run_layers
from policyprune.models.adapter import Adapter, Block
from policyprune.models.device import device_of, dtype_of
from policyprune.models.loading import skeleton
from policyprune.provenance import hardware
from policyprune.pruning.budget.block_latency import BlockLatency, Timing, fit
from policyprune.pruning.budget.costs import check_equal_widths
from policyprune.pruning.prunable import PrunableModel
from policyprune.storage.files import cache_folder, sparing_the_next_run, write_whole
from policyprune.surgery.shrink import cut, twin
from policyprune.surgery.sizes import keep_layers, state_depth

log = logging.getLogger(__name__)
SHARES = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)  # of a block's units
Widths = tuple[int, int]  # attention units (query heads of a KV group where these go) and FFN units that a layer keeps


def block_latency(source: Model, task: Task, budget: Budget, granularity: Granularity) -> BlockLatency | None:
    """The latency of a model's layers for a latency budget, None for another budget."""
    if not isinstance(budget, LatencyBudget):
        return None
    device = device_of(source)
    return layer_latency(skeleton(source, task), budget, granularity, device, dtype_of(source, device))


def layer_latency(
    model: PreTrainedModel, budget: LatencyBudget, granularity: Granularity, device: torch.device, dtype: torch.dtype
) -> BlockLatency:
    """The same of a model without weights (on the meta device), of which one layer is made and timed.

    UsageError for layers of unequal widths.
    """
    both = ("query_head" if "query_head" in granularity.units else "attention", "ffn")
    adapter = PrunableModel.of(model, both).adapter
    check_equal_widths(adapter, "budget: latency")
    blocks = {block.kind: block for block in adapter.blocks if block.layer == 0}
    key = {**_machine(device), "dtype": str(dtype), **_shapes(model, blocks, budget)}
    units, align = granularity.kinds, granularity.align
    points = widths(blocks["attention"], blocks["ffn"], units, align)

    def measure(points: list[Widths]) -> list[float]:
        log.info("measuring the latency of %d layer widths", len(points))
        return _measured(PrunableModel.of(_one_layer(model, adapter, device, dtype), both), budget, points)

    timings = table(cache_folder() / "latency", key, points, measure)
    return fit(timings if align or "ffn" not in units else timings[1:])  # the dense width is no typical one


def widths(attention: Block, ffn: Block, units: Iterable[str], align: int | None) -> list[Widths]:
    """(attention decisions, FFN units) to measure: the dense layer, then one block narrower at a time, then without.

    Only kinds in `units` get narrower. The other points stand for what a search leaves: numbers of channels that are
    multiples of `align`, and odd where there is none, since a dense width is a round number that matmuls are faster at.
    """

    def fewer(block: Block, step: int, odd: int) -> list[int]:
        if block.kind not in units:
            return [block.decisions]
        sizes = {max(step, round(share * block.decisions / step) * step) | odd for share in SHARES}
        return sorted(size for size in sizes if size < block.decisions) or [block.decisions]

    heads, channels = fewer(attention, 1, 0), fewer(ffn, align or 1, 0 if align else 1)
    some_heads, some_channels = heads[len(heads) // 2], channels[len(channels) // 2]
    all_heads = attention.decisions
    points = [(all_heads, ffn.count)]
    points += [(k, some_channels) for k in (*heads, all_heads)] + [(all_heads, n) for n in channels]
    return [*dict.fromkeys([*points, (0, some_channels), (all_heads, 0), (some_heads, 0), (0, 0)])]


def table(
    folder: Path, key: dict[str, Any], points: list[Widths], measure: Callable[[list[Widths]], list[float]]
) -> list[Timing]:
    """Timings of the points relative to the first: read from a file in `folder`, or measured and written to it.

    The file is named by the hardware and by a hash of `key` and points; both stand in it. It is replaced as a whole.
    """
    digest = hashlib.sha256(json.dumps([key, points], sort_keys=True).encode()).hexdigest()[:16]
    name = "-".join("".join(c if c.isalnum() else " " for c in str(key["hardware"])).split())
    path = folder / f"{name}-{digest}.json"
    try:
        return [Timing(**row) for row in json.loads(path.read_text(encoding="utf-8"))["timings"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there yet, or not what we wrote
    timings = [Timing(*point, time) for point, time in zip(points, measure(points), strict=True)]
    text = json.dumps({"key": key, "timings": [asdict(timing) for timing in timings]}, indent=2) + "\n"
    with sparing_the_next_run():
        write_whole(path, text.encode())
    return timings


def _machine(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    machine = hardware(name, torch.get_num_threads())
    return {"hardware": machine["processor"] if device.type == "cpu" else name, "machine": machine}


def _shapes(model: PreTrainedModel, blocks: dict[str, Block], budget: LatencyBudget) -> dict[str, Any]:
    return {
        "attention": model.config._attn_implementation,
        "torch": torch.__version__,
        "model_type": model.config.model_type,
        "hidden_size": model.config.hidden_size,
        "blocks": [[b.kind, b.count, b.width, b.params_per_unit] for b in blocks.values()],
        "batch_size": budget.batch_size,
        "length": budget.sequence_length,
        "repeats": budget.repeats,
    }


@torch.no_grad()
def _one_layer(model: PreTrainedModel, adapter: Adapter, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The first layer alone between the embeddings, with random weights, on the device and in the dtype of the run."""
    keep_layers(model, adapter, [0])
    state_depth(model.config, adapter, [0])
    model.base_model.to_empty(device=device)
    for tensor in (*model.base_model.parameters(), *model.base_model.buffers()):
        tensor.zero_()
    for parameter in model.get_submodule(adapter.layers[0]).parameters():
        parameter.normal_(std=0.02)
    model.base_model.to(dtype)
    model.eval().requires_grad_(False)
    return model


@torch.inference_mode()
def _measured(prunable: PrunableModel, budget: LatencyBudget, points: list[Widths]) -> list[float]:
    """Time of the layer at each point relative to the first point."""
    space = prunable.space
    actions: dict[Widths, Callable[[], object]] = {}
    for attention, ffn in points:
        mask = torch.cat([torch.arange(group.count) < (attention, ffn)[i] for i, group in enumerate(space.groups)])
        smaller = twin(prunable.model)
        cut(prunable.on(smaller), space.expand(mask))
        calls = layer_calls(smaller, prunable.adapter, budget.batch_size, budget.sequence_length)
        for _, args, kwargs in calls:
            hidden = args[0] if args else kwargs["hidden_states"]
            hidden.normal_()
        actions[attention, ffn] = partial(run_layers, calls)
    times = relative(in_turns(actions, budget.repeats, prunable.device), points[0])
    return [times[point] for point in points]
