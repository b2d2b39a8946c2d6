"""Measure a checkpoint, whoever made it, with the protocol and the record of a run."""

import logging
from dataclasses import replace
from pathlib import Path

import torch

from policyprune.config.schema import Evaluating, Generated, Recovering, Task, Text
from policyprune.errors import UsageError
from policyprune.evaluation.fresh_process import check_fresh_process
from policyprune.evaluation.latency import latencies
from policyprune.evaluation.measures import parameters, size, weight_megabytes
from policyprune.evaluation.perplexity import check_lengths
from policyprune.evaluation.plausibility import check_reloaded, doubts
from policyprune.evaluation.quality import quality_of
from policyprune.evaluation.zero_shot import embedded_files
from policyprune.models.device import device_of
from policyprune.models.families import FAMILIES
from policyprune.models.loading import load, skeleton
from policyprune.runs.folder import finished_before, recorded
from policyprune.runs.record import Record
from policyprune.runs.rehearsal import rehearse_evaluation
from policyprune.runs.stages import measured
from policyprune.runs.summary import closing_words, summary
from policyprune.storage.sources import locate
from policyprune.tasks import build, check_model

log = logging.getLogger(__name__)


def run(config: Evaluating, folder: Path) -> Record:
    """Measure in `folder`, or show the record of the same evaluation when it is finished already."""
    path = locate("model.source", config.model.source)
    if config.evaluation.fresh_process and (path is None or not path.is_dir()):
        raise UsageError("evaluation.fresh_process: true needs a checkpoint on this disk")
    record = finished_before(config, folder)
    if record is not None:
        log.info("this evaluation is finished already, force=true repeats it")
    else:
        if config.evaluation.fresh_process:
            check_fresh_process()
        embedded_files(config.evaluation.zero_shot)  # this and what follows refuse before a record is begun
        empty = skeleton(config.model, config.task, any_class=True)
        check_model(config.task, empty)
        check_lengths(config.evaluation, config.task, empty)
        record = _run(config, folder)
    print(f"\n{summary(record)}\n\n{closing_words(record, folder)}")
    return record


def task_of(config: Evaluating | Recovering) -> Task:
    """The task, with BOS where it stood in the data of the run that made the checkpoint."""
    if isinstance(config.task, Text) and config.task.bos == "auto" and config.recorded_bos is not None:
        return replace(config.task, bos=config.recorded_bos)
    return config.task


def _unwritten(task: Task) -> Task:
    """The task without sequences that a dense model would have to write."""
    return replace(task, calibration=replace(task.calibration, count=0)) if isinstance(task, Generated) else task


@torch.no_grad()
def _run(config: Evaluating, folder: Path) -> Record:
    torch.manual_seed(config.seed)
    with recorded(config, folder, device_of(config.model)) as record:
        with measured("load", record.stages):
            model, tokenizer = load(config.model, config.task, any_class=True)
            record.hardware["attention"] = model.config._attn_implementation
        with measured("data", record.stages):
            task = build(_unwritten(task_of(config)), tokenizer, model)
            record.protocol = task.protocol
            quality = quality_of(task, config.evaluation, tokenizer)
            for line in [*task.check(model), *quality.check()]:
                record.warn(line)
            rehearse_evaluation(quality, model)
        with measured("evaluation", record.stages):
            measures = quality.of("evaluated", model)
            for measure in measures:
                record.add("evaluated", *measure)
            if config.evaluation.fresh_process:
                checkpoint = locate("model.source", config.model.source)
                assert checkpoint is not None
                reloaded = quality.elsewhere(checkpoint, model, config.model.trust_remote_code)
                for measure in reloaded:
                    record.add("reloaded", *measure)
                check_reloaded(measures, reloaded, model.dtype, checkpoint)
            if model.config.model_type in FAMILIES:
                for measure in size(model, config.sequence_length):
                    record.add("evaluated", *measure)
            else:  # of a family that is not known here: its blocks cannot be counted
                record.add("evaluated", "parameters", parameters(model), "", {})
            record.add("evaluated", "checkpoint", weight_megabytes(model), "MB", {})
            for subject, measure in latencies({"evaluated": model}, config.evaluation.latency):
                record.add(subject, *measure)
        for line in doubts(record.results):
            record.warn(line)
    return record
