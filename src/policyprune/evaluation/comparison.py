"""The dense model, the one-shot masks, the pruned and the tuned model, side by side."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from policyprune.config.schema import Evaluation
from policyprune.evaluation.latency import latencies
from policyprune.evaluation.measures import Measure, checkpoint_megabytes, size, weight_megabytes
from policyprune.evaluation.plausibility import check_reloaded
from policyprune.evaluation.quality import Quality
from policyprune.models.identity import identity_of
from policyprune.pruning.prunable import PrunableModel
from policyprune.storage.files import cache_folder, sparing_the_next_run, write_whole
from policyprune.surgery.shrink import shrink

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ComparedModels:
    """The models of a run: `one_shot` masks (n,) by the scope of their budget, `smaller` models by what was done.

    `smaller` has the model without the pruned units as `pruned` and, where it was tuned, as `tuned`. The last one is
    what `checkpoint` holds, None where none was written.
    """

    dense: PrunableModel
    one_shot: Mapping[str, Tensor]
    smaller: Mapping[str, PreTrainedModel]
    checkpoint: Path | None


def compare(
    models: ComparedModels, quality: Quality, options: Evaluation, length: int, *, again: bool, trusted: bool
) -> Iterator[tuple[str, Measure]]:
    """Yield (subject, measure) as they are measured, all of physically smaller models.

    `length` is that of a sequence, for MACs. `again`: also measure what is known of the dense model. `trusted`: leave
    to run code of the checkpoint that is not ours. NotTrustworthyError, after its rows, where the checkpoint measures
    something else in a fresh process.
    """
    dense = models.dense.model
    yield from (("dense", row) for row in dense_measures(quality, dense, cache_folder() / "dense", again))
    for scope, mask in models.one_shot.items():
        one_shot = shrink(models.dense, mask)
        measures = [*quality.of(f"one-shot, {scope}", one_shot), *size(one_shot, length)]
        yield from (("one_shot", row._replace(protocol={**row.protocol, "scope": scope})) for row in measures)
        del one_shot
    in_memory: list[Measure] = []
    for subject, model in models.smaller.items():
        in_memory = quality.of(subject, model)
        yield from ((subject, row) for row in in_memory)
    subject, final = list(models.smaller.items())[-1]
    if options.fresh_process and models.checkpoint is not None:
        reloaded = quality.elsewhere(models.checkpoint, final, trusted)
        yield from (("reloaded", row) for row in reloaded)
        check_reloaded(in_memory, reloaded, final.dtype, models.checkpoint)
    for name, model in (("dense", dense), (subject, final)):
        yield from ((name, row) for row in size(model, length))
    if models.checkpoint is not None:
        yield "dense", Measure("checkpoint", weight_megabytes(dense), "MB", {})
        yield subject, Measure("checkpoint", checkpoint_megabytes(models.checkpoint), "MB", {})
    yield from latencies({"dense": dense, subject: final}, options.latency)


def dense_measures(quality: Quality, model: PreTrainedModel, folder: Path, again: bool) -> list[Measure]:
    """Measures of the dense model: those in `folder` of the same model, test data and protocol, or new ones.

    The key is all that a number depends on, by content: weights, code, data, settings, versions, threads.
    `again`: measure whatever there is. Models with offloaded weights are always measured.
    """
    identity = quality.identity()
    if identity is None or any(parameter.is_meta for parameter in model.parameters()):
        return quality.of("dense", model)
    key = json.dumps([identity, identity_of(model)], sort_keys=True)
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    if not again:
        try:
            rows = [Measure(*row) for row in json.loads(path.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError):
            pass  # not there yet, or not what we wrote
        else:
            log.info("the dense model was measured before in this way: %s", path)
            return rows
    measures = quality.of("dense", model)
    with sparing_the_next_run():
        write_whole(path, (json.dumps(measures, indent=1) + "\n").encode())
    return measures
