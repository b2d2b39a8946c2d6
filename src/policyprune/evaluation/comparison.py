"""The dense model, the metric-only masks and the pruned model, side by side."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.config.schema import Config
from policyprune.evaluation.efficiency import latency
from policyprune.evaluation.fresh_process import perplexity_elsewhere
from policyprune.evaluation.measures import Measure, checkpoint_megabytes, quality, size, weight_megabytes
from policyprune.models.adapter import Adapter
from policyprune.pruning.budget import make_budget
from policyprune.pruning.selection import select
from policyprune.pruning.space import Space
from policyprune.surgery.shrink import shrink
from policyprune.tasks.language_modeling import TextTask


def compare(
    config: Config,
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    adapter: Adapter,
    space: Space,
    task: TextTask,
    metric: Tensor,
    checkpoint: Path,
) -> Iterator[tuple[str, Measure]]:
    """Yield (subject, measure) as they are measured; each perplexity is that of the physically smaller model."""
    wanted = config.evaluation
    length = config.budget.sequence_length
    windows = {size: task.windows(size, wanted.max_tokens) for size in wanted.lengths}
    yield from (("dense", row) for row in quality("dense", dense, windows, wanted))
    for scope in wanted.one_shot:
        if config.optimizer.name == "one_shot" and scope == config.budget.scope:
            continue  # this is what was pruned
        budget = make_budget(replace(config.budget, scope=scope), adapter, space)
        other = shrink(dense, adapter, space, select(metric.double().cpu() / budget.cost, budget))
        for name, value, unit, protocol in [
            *quality(f"{config.importance.name}, {scope}", other, windows, wanted),
            *size(other, length),
        ]:
            yield "one_shot", (name, value, unit, {**protocol, "scope": scope})
        del other
    yield from (("pruned", row) for row in quality("pruned", pruned, windows, wanted))
    if wanted.fresh_process and windows:
        values = perplexity_elsewhere(
            checkpoint, windows, str(dense.dtype).removeprefix("torch."), str(dense.device), wanted.batch_tokens
        )
        yield from (("reloaded", ("perplexity", value, "", {"length": own})) for own, value in values.items())
    for subject, model in (("dense", dense), ("pruned", pruned)):
        yield from ((subject, row) for row in size(model, length))
    if config.export.name == "hf":
        yield "dense", ("checkpoint", weight_megabytes(dense), "MB", {})
        yield "pruned", ("checkpoint", checkpoint_megabytes(checkpoint), "MB", {})
    if wanted.latency.repeats:
        shape = {"batch_size": wanted.latency.batch_size, "length": wanted.latency.length}
        medians = latency({"dense": dense, "pruned": pruned}, **shape, repeats=wanted.latency.repeats)
        protocol = {**shape, "repeats": wanted.latency.repeats, "threads": torch.get_num_threads()}
        yield from ((subject, ("latency", 1e3 * value, "ms", protocol)) for subject, value in medians.items())
