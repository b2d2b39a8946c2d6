"""Train a checkpoint back, whoever pruned it, with the protocol and the record of a run."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from torch import distributed
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.commands.checks import check_training
from policyprune.commands.evaluate import task_of
from policyprune.config.schema import Generated, Recovering, Recovery, Trained
from policyprune.errors import UsageError
from policyprune.evaluation.fresh_process import check_fresh_process
from policyprune.evaluation.latency import latencies
from policyprune.evaluation.measures import checkpoint_megabytes, size
from policyprune.evaluation.perplexity import check_lengths
from policyprune.evaluation.plausibility import check_reloaded, doubts
from policyprune.evaluation.quality import Quality, quality_of
from policyprune.evaluation.zero_shot import embedded_files
from policyprune.models.adapter import adapt
from policyprune.models.device import device_of, in_search_dtype
from policyprune.models.loading import load, skeleton
from policyprune.processes import alone, processes
from policyprune.recovery.devices import load_whole_models
from policyprune.recovery.material import Material, material_of
from policyprune.recovery.pace import Report
from policyprune.recovery.recover import Surroundings, recover, teach
from policyprune.runs.card import write_card
from policyprune.runs.folder import finished_before, recorded
from policyprune.runs.record import TRAINER, Record
from policyprune.runs.rehearsal import rehearse_evaluation
from policyprune.runs.stages import measured
from policyprune.runs.summary import closing_words, summary
from policyprune.search.team import join
from policyprune.surgery.checkpoint import save_checkpoint
from policyprune.tasks import BuiltTask, build, check_model
from policyprune.tracking import NoTracker, Tracker, open_tracker

log = logging.getLogger(__name__)


def run(config: Recovering, folder: Path) -> Record:
    """Recover `model.source` into `folder/checkpoint`; what was interrupted goes on from its last held-out loss."""
    record = finished_before(config, folder)
    if processes() > 1:
        _meet()
    if record is not None:
        log.info("this recovery is finished already, force=true repeats it")
        with company(None):
            pass
    else:
        _check(config)
        record = _run(config, folder)
    print(f"\n{summary(record)}\n\n{closing_words(record, folder)}")
    return record


def work(config: Recovering) -> int:
    """Train along with rank 0, without files or words of one's own; the exit code."""
    logging.disable()
    _meet()
    assert isinstance(config.recovery, Trained)
    with torch.no_grad():
        model, tokenizer = load(config.model, config.task, any_class=True)
        dense = _dense(config)
        task = _task(config, tokenizer, model, dense)
        material = material_of(config.recovery, config.task, task, tokenizer, model)
        with company(None) as folder:
            if folder is not None:
                teach(model, config.recovery, material, _surroundings(config, folder, dense))
    return 0


def _meet() -> None:
    load_whole_models()
    join()


@contextmanager
def company(folder: Path | None) -> Iterator[Path | None]:
    """During the block all processes of a recovery train in the folder that rank 0 names, or in none; then each goes on
    alone."""
    told = [None if folder is None else str(folder.absolute())]
    if processes() > 1:
        distributed.broadcast_object_list(told, 0)
    yield None if told[0] is None else Path(told[0])
    if processes() > 1:
        distributed.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
        alone()


def _surroundings(
    config: Recovering, folder: Path, dense: PreTrainedModel | None, tracker: Tracker | None = None
) -> Surroundings:
    assert isinstance(config.recovery, Trained)
    return Surroundings(
        teacher=in_search_dtype(dense) if dense is not None and config.recovery.needs_teacher else None,
        folder=folder / TRAINER,
        keep=config.keep or 1.0,
        seed=config.seed,
        report=reporting(tracker or NoTracker()),
        adapters=folder / "adapter",
    )


def _check(config: Recovering) -> None:
    """UsageError for what this machine lacks and this model cannot, before weights are loaded."""
    if config.evaluation.fresh_process:
        check_fresh_process()
    embedded_files(config.evaluation.zero_shot)
    empty = skeleton(config.model, config.task, any_class=True)
    adapt(empty)
    check_model(config.task, empty)
    check_lengths(config.evaluation, config.task, empty)
    assert isinstance(config.recovery, Trained)
    check_training(config.recovery, config.task, empty, device_of(config.model))


def train_back(
    model: PreTrainedModel,
    options: Recovery,
    material: Material,
    around: Surroundings,
    record: Record,
    teacher: str | None,
) -> PreTrainedModel:
    """The recovered model; the record says how it came about. `teacher` is what the dense model is called."""
    assert isinstance(options, Trained)
    recovered = recover(model, options, material, around)
    record.recovery = {**recovered.facts, "teacher": teacher if around.teacher is not None else None}
    if recovered.facts["outcome"] != "recovered":
        record.warn(f"recovery={options.name} found nothing better, the recovered model is the one before it")
    return recovered.model


def reporting(tracker: Tracker) -> Report:
    """Tells a tracker of the training, and the log of its held-out losses."""

    def report(values: dict[str, float], step: int) -> None:
        tracker.log(values, step, stage="recovery")
        if "held_out_loss" in values:
            log.info("recovery, step %d: held-out loss %.4f", step, values["held_out_loss"])

    return report


@torch.no_grad()
def _run(config: Recovering, folder: Path) -> Record:
    torch.manual_seed(config.seed)
    with (
        recorded(config, folder, device_of(config.model)) as record,
        open_tracker(config.tracker, record, folder) as tracker,
    ):
        with measured("load", record.stages):
            model, tokenizer = load(config.model, config.task, any_class=True)
            record.hardware["attention"] = model.config._attn_implementation
            dense = _dense(config)
        with measured("data", record.stages):
            task = _task(config, tokenizer, model, dense)
            quality, material = _read_data(config, record, model, tokenizer, task)
            rehearse_evaluation(quality, model)
        with measured("recovery", record.stages), company(folder):
            around = _surroundings(config, folder, dense, tracker)
            dense = None  # of which there may be a copy in another data type now
            recovered = train_back(model, config.recovery, material, around, record, config.teacher)
        for line in quality.trained_on(material.read):
            record.warn(line)
        checkpoint = folder / "checkpoint"
        with measured("export", record.stages):
            save_checkpoint(recovered, tokenizer, adapt(recovered), checkpoint)
        with measured("evaluation", record.stages):
            _evaluate(config, record, quality, {"pruned": model, "recovered": recovered}, checkpoint)
        for line in doubts(record.results):
            record.warn(line)
        write_card(record, checkpoint, config.teacher or config.model.source)
    return record


def _dense(config: Recovering) -> PreTrainedModel | None:
    """The dense model where it teaches, or writes what is trained on."""
    assert isinstance(config.recovery, Trained)
    if config.teacher is None or not (config.recovery.needs_teacher or isinstance(config.task, Generated)):
        return None
    dense = replace(config.model, source=config.teacher, revision=config.teacher_revision)
    try:
        return load(dense, config.task)[0]
    except UsageError as error:
        raise UsageError(str(error).replace("model.source:", "teacher:", 1)) from error


def _task(
    config: Recovering, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, dense: PreTrainedModel | None
) -> BuiltTask:
    return build(task_of(config), tokenizer, dense if isinstance(config.task, Generated) else model)


def _read_data(
    config: Recovering, record: Record, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: BuiltTask
) -> tuple[Quality, Material]:
    record.protocol = task.protocol
    quality = quality_of(task, config.evaluation, tokenizer)
    for line in [*task.check(model), *quality.check()]:
        record.warn(line)
    assert isinstance(config.recovery, Trained)
    return quality, material_of(config.recovery, config.task, task, tokenizer, model)


def _evaluate(
    config: Recovering, record: Record, quality: Quality, models: dict[str, PreTrainedModel], checkpoint: Path
) -> None:
    """What came in and what came out, and what was written as another process loads it."""
    for subject, model in models.items():
        measures = quality.of(subject, model)
        for measure in measures:
            record.add(subject, *measure)
    recovered = models["recovered"]
    if config.evaluation.fresh_process:
        reloaded = quality.elsewhere(checkpoint, recovered)
        for measure in reloaded:
            record.add("reloaded", *measure)
        check_reloaded(measures, reloaded, recovered.dtype, checkpoint)
    for measure in size(recovered, config.sequence_length):
        record.add("recovered", *measure)
    record.add("recovered", "checkpoint", checkpoint_megabytes(checkpoint), "MB", {})
    for subject, measure in latencies({"recovered": recovered}, config.evaluation.latency):
        record.add(subject, *measure)
