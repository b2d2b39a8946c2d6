"""One run, from the dense model to the smaller one and its numbers."""

import logging
from pathlib import Path

import torch

from policyprune.config.schema import Config, LanguageModeling
from policyprune.evaluation.comparison import compare
from policyprune.models.adapter import adapt
from policyprune.models.loading import device_of, load
from policyprune.pruning.budget import make_budget
from policyprune.pruning.importance import METRICS, Evidence
from policyprune.pruning.initialisation import initial_probabilities
from policyprune.pruning.mask import keep_rates, save_mask
from policyprune.pruning.space import space_of
from policyprune.results.record import Record
from policyprune.results.run import finished_before, recorded
from policyprune.results.stages import measured
from policyprune.results.tables import closing_words, summary
from policyprune.search import search
from policyprune.surgery.checkpoint import save_checkpoint
from policyprune.surgery.shrink import shrink
from policyprune.tasks.language_modeling import build
from policyprune.tracking import open_tracker

log = logging.getLogger(__name__)


def run(config: Config, folder: Path) -> Record:
    """Do one run in `folder`, or show the record of the same run when it is finished already."""
    record = finished_before(config, folder)
    if record is not None:
        log.info("this run is finished already, force=true repeats it")
    else:
        record = _run(config, folder)
    print(f"\n{summary(record)}\n\n{closing_words(record, folder)}")
    return record


@torch.no_grad()
def _run(config: Config, folder: Path) -> Record:
    assert isinstance(config.task, LanguageModeling)
    torch.manual_seed(config.seed)
    with recorded(config, folder, device_of(config.model)) as record, open_tracker(config, record, folder) as tracker:
        with measured("load", record.stages):
            model, tokenizer = load(config.model)
            adapter = adapt(model)
            space = space_of(adapter, config.granularity.units)
            budget = make_budget(config.budget, adapter, space)
        with measured("data", record.stages):
            task = build(config.task, tokenizer)
            record.protocol = task.protocol
        with measured("importance", record.stages):
            batches = task.batches(config.importance.sequences)
            evidence = Evidence(model, adapter, space, batches, config.budget.keep, config.seed)
            metric = METRICS[config.importance.name](evidence)
            start = initial_probabilities(metric, space, budget, config.importance)
        with measured("search", record.stages):
            found = search(config, model, adapter, task, space, budget, metric, start, folder, tracker)
            record.search = {"forwards": found.forwards, "units": space.n, "kept": int(found.mask.sum())}
            record.keep_rates = keep_rates(found.mask, space)
            save_mask(folder / "mask.safetensors", found.mask, space, found.probabilities)
        with measured("export", record.stages):
            pruned = shrink(model, adapter, space, found.mask)
            checkpoint = folder / "checkpoint"
            if config.export.name == "hf":
                save_checkpoint(pruned, tokenizer, adapter, checkpoint, config.export.max_shard_size)
        with measured("evaluation", record.stages):
            for subject, measure in compare(config, model, pruned, adapter, space, task, metric, checkpoint):
                record.add(subject, *measure)
    return record
