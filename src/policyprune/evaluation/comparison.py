"""The dense model, the metric-only masks, the pruned and the tuned model, side by side."""

from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from policyprune.config.schema import Config
from policyprune.evaluation.dense_cache import dense_measures
from policyprune.evaluation.latency.forward import latencies
from policyprune.evaluation.measures import Measure, checkpoint_megabytes, size, weight_megabytes
from policyprune.evaluation.plausibility import check_reloaded
from policyprune.evaluation.quality import Quality
from policyprune.models.adapter import Adapter
from policyprune.pruning.budget.budget import Budget
from policyprune.pruning.budget.selection import by_metric
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import HIDDEN, Space
from policyprune.storage.cache import cache_folder
from policyprune.surgery.shrink import shrink


def compare(
    config: Config,
    dense: PreTrainedModel,
    smaller: dict[str, PreTrainedModel],
    adapter: Adapter,
    space: Space,
    quality: Quality,
    metric: Tensor,
    checkpoint: Path,
    budget_in: Callable[[str], Budget],
) -> Iterator[tuple[str, Measure]]:
    """Yield (subject, measure) as they are measured, all of physically smaller models.

    `smaller` has the model without the pruned units as `pruned` and, where it was tuned, as `tuned`; the last one is
    what `checkpoint` holds. `budget_in(scope)` is the run's budget, global or per layer. NotTrustworthyError, after its
    rows, where the checkpoint measures something else in a fresh process.
    """
    wanted, length = config.evaluation, config.budget.sequence_length
    yield from (("dense", row) for row in dense_measures(quality, dense, cache_folder() / "dense", config.force))
    for scope in wanted.one_shot:
        if config.optimizer.name == "one_shot" and scope == config.budget.scope:
            continue  # this is what was pruned
        if scope == "per_layer" and HIDDEN in space.views(metric):
            continue  # hidden channels belong to no layer
        budget = budget_in(scope)
        mask = by_metric(metric, budget, config.importance.per_cost)
        other = shrink(PrunableModel(dense, adapter, space), space.expand(mask))
        measures = [*quality.of(f"{config.importance.name}, {scope}", other), *size(other, length)]
        yield from (("one_shot", row._replace(protocol={**row.protocol, "scope": scope})) for row in measures)
        del other
    found: list[Measure] = []
    for subject, model in smaller.items():
        found = quality.of(subject, model)
        yield from ((subject, row) for row in found)
    subject, final = list(smaller.items())[-1]
    if wanted.fresh_process:
        again = quality.elsewhere(checkpoint, final, config.model.trust_remote_code)
        yield from (("reloaded", row) for row in again)
        check_reloaded(found, again, final.dtype, checkpoint)
    for name, model in (("dense", dense), (subject, final)):
        yield from ((name, row) for row in size(model, length))
    if "hf" in config.export.formats:
        yield "dense", Measure("checkpoint", weight_megabytes(dense), "MB", {})
        yield subject, Measure("checkpoint", checkpoint_megabytes(checkpoint), "MB", {})
    yield from latencies({"dense": dense, subject: final}, wanted.latency)
