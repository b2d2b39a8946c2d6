"""The verb `run`: from the dense model to the smaller one and its numbers."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from policyprune.commands.checks import budgets_of, check
from policyprune.commands.recover import reporting, train_back
from policyprune.config.schema import Calibrated, Config, LatencyBudget, Trained
from policyprune.evaluation.comparison import ComparedModels, compare
from policyprune.evaluation.latency import kept_latency
from policyprune.evaluation.plausibility import NotTrustworthyError, absurd_from_the_start, doubts
from policyprune.evaluation.quality import Quality, quality_of
from policyprune.models.device import device_of, in_search_dtype
from policyprune.models.loading import load
from policyprune.pruning.budget.budget import Budget
from policyprune.pruning.budget.selection import one_shot_mask
from policyprune.pruning.mask_file import keep_rates, save_mask
from policyprune.pruning.optimizers.problem import Found
from policyprune.pruning.prunable import PrunableModel
from policyprune.recovery.material import Material, material_of
from policyprune.recovery.recover import Surroundings
from policyprune.runs.card import write_card
from policyprune.runs.folder import finished_before, recorded
from policyprune.runs.record import TRAINER, Record
from policyprune.runs.rehearsal import Data, rehearse
from policyprune.runs.repair import repair
from policyprune.runs.stages import measured
from policyprune.runs.state import Content, StateFile, once
from policyprune.runs.summary import closing_words, summary
from policyprune.search.database import Database
from policyprune.search.log import SearchContext, search
from policyprune.search.prune import Pruned, Pruning, Scores, score
from policyprune.search.team import Team, leading
from policyprune.search.worker import briefing
from policyprune.storage.files import cache_folder
from policyprune.storage.record_file import MASK_FILE, PLAN_FILE
from policyprune.surgery import formats
from policyprune.surgery.plan import Base, Plan, base_of
from policyprune.surgery.plan_file import write_plan
from policyprune.surgery.shrink import remaining_layers, shrink
from policyprune.tasks import BuiltTask, build
from policyprune.tasks.task import CalibrationUsage
from policyprune.tracking import Tracker, open_tracker
from policyprune.tuning.fit import fit

log = logging.getLogger(__name__)


def run(config: Config, folder: Path) -> Record:
    """Do one run in `folder`, or show the record of the same run when it is finished already."""
    with leading() as team:
        lasting = not isinstance(config.recovery, Trained)  # a mask does not tell what was trained
        record = finished_before(config, folder, partial(repair, config=config, folder=folder) if lasting else None)
        if record is not None:
            log.info("this run is finished already, force=true repeats it")
        else:
            check(config)
            record = _run(config, folder, team)
    print(f"\n{summary(record)}\n\n{closing_words(record, folder)}")
    return record


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: its config, where it writes, what it records, who is told, and the processes that share its search."""

    config: Config
    folder: Path
    record: Record
    tracker: Tracker
    team: Team | None

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Measure the seconds and the memory of a stage."""
        return measured(name, self.record.stages)


@dataclass(frozen=True, kw_only=True)
class Dense:
    """The dense model, the description of it that plans carry, and the run's budget by scope."""

    prunable: PrunableModel
    tokenizer: PreTrainedTokenizerBase
    base: Base
    budget: Callable[[str], Budget]


@torch.no_grad()
def _run(config: Config, folder: Path, team: Team | None) -> Record:
    torch.manual_seed(config.seed)
    with (
        recorded(config, folder, device_of(config.model)) as record,
        open_tracker(config.tracker, record, folder) as tracker,
    ):
        run = Run(config=config, folder=folder, record=record, tracker=tracker, team=team)
        with run.stage("load"):
            dense = _load(run)
        with run.stage("data"):
            task, quality, material = _read_data(run, dense)
        with run.stage("rehearsal"):
            rehearse(config, dense.prunable.model, dense.tokenizer, Data(task, quality, material), folder)
        pruned = _prune(run, dense, task)
        if material is not None:
            with run.stage("recovery"):
                _recover(run, dense, pruned, material)
            for line in quality.trained_on(material.read):
                record.warn(line)
        with run.stage("export"):
            _export(run, dense, pruned)
        with run.stage("evaluation"):
            _evaluate(run, dense, pruned, quality)
        for line in doubts(record.results):
            record.warn(line)
        if "hf" in config.export.formats:
            write_card(record, formats.target("hf", folder, formats.Settings.of(config.export)), dense.base.source)
    return record


def _load(run: Run) -> Dense:
    """The dense model; UsageError for formats that cannot express what becomes of it."""
    config = run.config
    model, tokenizer = load(config.model, config.task)
    run.record.hardware["attention"] = model.config._attn_implementation
    formats.check_formats(config.export.formats, model, formats.Settings.of(config.export), tokenizer)
    base = base_of(model, config.model.source, config.model.revision, config.task.name)
    prunable = PrunableModel.of(model, config.granularity.units, config.granularity.spared)
    return Dense(prunable=prunable, tokenizer=tokenizer, base=base, budget=budgets_of(config, prunable))


def _read_data(run: Run, dense: Dense) -> tuple[BuiltTask, Quality, Material | None]:
    """Calibration sequences, test protocol, and what a recovery is trained on."""
    config, record, model = run.config, run.record, dense.prunable.model
    task = build(config.task, dense.tokenizer, model)
    record.protocol = task.protocol
    quality = quality_of(task, config.evaluation, dense.tokenizer)
    for line in [*task.check(model), *quality.check(), *absurd_from_the_start(task.protocol)]:
        record.warn(line)
    material = None
    if isinstance(config.recovery, Trained):
        material = material_of(config.recovery, config.task, task, dense.tokenizer, model)
    if run.team is not None:
        run.team.begin(briefing(dense.prunable.space.n, task.protocol))
    return task, quality, material


def _prune(run: Run, dense: Dense, task: BuiltTask) -> Pruned:
    """Score, search and tune; the search's own copy of the model ends here."""
    config, record, prunable = run.config, run.record, dense.prunable
    usage = CalibrationUsage(task)
    pruning = Pruning(
        prunable=prunable,
        quick=prunable.on(in_search_dtype(prunable.model, config.model.search_dtype)),
        data=usage,
        budget=dense.budget(config.budget.scope),
        importance=config.importance,
        tuning=config.tuning,
        seed=config.seed,
        database=Database(cache_folder() / "second_order"),
    )
    with run.stage("importance"):
        scores = _score(run, pruning, usage)
    with run.stage("search"):
        found = _search(run, pruning, scores, usage)
    pruning.forget()
    mask = scores.space.expand(found.mask)
    models, compensation = {"pruned": shrink(prunable, mask)}, None
    if isinstance(config.tuning, Calibrated):
        with run.stage("tuning"):
            fitted = fit(prunable, mask, usage, config.tuning, pruning.quick)
            mask, compensation, record.tuning = fitted.mask, fitted.compensation, fitted.report
            record.calibration["tuning"] = {**usage.taken(), "backpropagation": config.tuning.back_propagates}
            models["tuned"] = shrink(prunable, mask, compensation)
    return Pruned(scores=scores, found=found, mask=mask, compensation=compensation, models=models, tuning=record.tuning)


def _score(run: Run, pruning: Pruning, usage: CalibrationUsage) -> Scores:
    """Importance of the units, kept for a process that goes on with this run."""

    def compute() -> Content:
        scores = score(pruning)
        ranks = [torch.tensor(of_group) for of_group in scores.space.ranks]
        kept = {"importance": scores.importance, "start": scores.start, "ranks": ranks}
        return {**kept, "calibration": usage.taken()}

    kept = once(StateFile(run.folder / "importance.state", {"config": run.record.config_hash}), compute)
    run.record.calibration["importance"] = kept["calibration"]
    space = replace(pruning.prunable.space, ranks=tuple(tuple(ranks.tolist()) for ranks in kept.get("ranks", [])))
    return Scores(kept["importance"], kept["start"], space)


def _search(run: Run, pruning: Pruning, scores: Scores, usage: CalibrationUsage) -> Found:
    """The decisions, and what the record says of the search; the other processes end with it."""
    record, units = run.record, pruning.prunable.units
    context = SearchContext(
        folder=run.folder,
        config_hash=record.config_hash,
        safety=run.config.safety,
        tracker=run.tracker,
        usage=usage,
        team=run.team,
    )
    found, facts = search(pruning, scores, run.config.optimizer, context)
    if run.team is not None:
        run.team.dismiss()
    mask = scores.space.expand(found.mask)
    passes = {"forwards": found.forwards, "backwards": found.backwards}
    choice = {"choice": found.choice} if found.choice else {}
    record.search = {**passes, "units": units.n, "kept": int(mask.sum()), **facts, **choice}
    record.calibration["search"] = usage.taken()
    record.keep_rates = keep_rates(mask, units)
    return found


def _recover(run: Run, dense: Dense, pruned: Pruned, material: Material) -> None:
    """Train what the search and the tuning left."""
    config, record, model = run.config, run.record, dense.prunable.model
    assert isinstance(config.recovery, Trained)
    around = Surroundings(
        teacher=in_search_dtype(model, config.model.search_dtype) if config.recovery.needs_teacher else None,
        folder=run.folder / TRAINER,
        keep=config.budget.keep,
        seed=config.seed,
        report=reporting(run.tracker),
        adapters=run.folder / "adapter",
        layers=remaining_layers(dense.prunable, pruned.mask, pruned.compensation),
    )
    recovered = train_back(pruned.model, config.recovery, material, around, record, config.model.source)
    pruned.models["recovered"] = recovered


def _export(run: Run, dense: Dense, pruned: Pruned) -> None:
    """Write mask, plan and every format that is asked for."""
    space, settings = pruned.scores.space, formats.Settings.of(run.config.export)
    probabilities = space.expand(pruned.found.probabilities)
    save_mask(run.folder / MASK_FILE, pruned.mask, space.units, probabilities, pruned.compensation)
    write_plan(run.folder / PLAN_FILE, Plan(dense.base, space.units, pruned.mask, pruned.compensation))
    for form in run.config.export.formats:
        path = formats.target(form, run.folder, settings)
        formats.write_format(form, pruned.model, dense.tokenizer, path, settings)


def _evaluate(run: Run, dense: Dense, pruned: Pruned, quality: Quality) -> None:
    """Measure the dense, the one-shot and all smaller models. NotTrustworthyError, and a card that says it, where the
    checkpoint is another model than the one in memory."""
    config, record = run.config, run.record
    exported = "hf" in config.export.formats
    checkpoint = formats.target("hf", run.folder, formats.Settings.of(config.export))
    models = ComparedModels(
        dense=dense.prunable,
        one_shot=_one_shot_masks(config, dense, pruned.scores),
        smaller=pruned.models,
        checkpoint=checkpoint if exported else None,
    )
    length, trusted = config.budget.sequence_length, config.model.trust_remote_code
    try:
        for subject, measure in compare(
            models, quality, config.evaluation, length, again=config.force, trusted=trusted
        ):
            record.add(subject, *measure)
    except NotTrustworthyError as error:
        record.warnings.append(str(error))
        write_card(record, checkpoint, dense.base.source)  # whoever finds the checkpoint is told
        raise
    if isinstance(config.budget, LatencyBudget):
        last = list(pruned.models.items())[-1]
        budget = dense.budget(config.budget.scope)
        for subject, measure in kept_latency(config.budget, dense.prunable.model, last, budget, pruned.found.mask):
            record.add(subject, *measure)


def _one_shot_masks(config: Config, dense: Dense, scores: Scores) -> dict[str, Tensor]:
    """The masks (n,) of the importance alone, by the scope of their budget, without the one that was pruned."""
    masks = {}
    for scope in config.evaluation.one_shot:
        if config.optimizer.name == "one_shot" and scope == config.budget.scope:
            continue  # this is what was pruned
        if scope == "per_layer" and dense.prunable.has_hidden_units:
            continue  # hidden channels belong to no layer
        decisions = one_shot_mask(scores.importance, dense.budget(scope), config.importance.per_cost)
        masks[scope] = scores.space.expand(decisions)
    return masks
