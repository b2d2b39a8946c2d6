"""One run, from the dense model to the smaller one and its numbers."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.config.schema import Config, Given, LatencyBudget
from policyprune.errors import UsageError
from policyprune.evaluation.comparison import compare
from policyprune.evaluation.fresh_process import check_fresh_process
from policyprune.evaluation.latency.forward import kept_latency
from policyprune.evaluation.latency.table import block_latency
from policyprune.evaluation.perplexity import check_lengths
from policyprune.evaluation.plausibility import NotTrustworthyError, absurd_from_the_start, doubts
from policyprune.evaluation.quality import quality_of
from policyprune.evaluation.zero_shot_tasks import embedded_files
from policyprune.models.adapter import Adapter, adapt
from policyprune.models.device import device_of, in_search_dtype
from policyprune.models.loading import load, skeleton
from policyprune.pruning.budget.budget import Budget, make_budget
from policyprune.pruning.importance import scores_of
from policyprune.pruning.importance.initialisation import initial_probabilities
from policyprune.pruning.mask import keep_rates, save_mask
from policyprune.pruning.optimizers import Found
from policyprune.pruning.optimizers.from_run import mask_of
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import Space, space_of
from policyprune.runs.card import write_card
from policyprune.runs.folder import finished_before, recorded
from policyprune.runs.record import Record
from policyprune.runs.rehearsal import rehearse
from policyprune.runs.repair import mender
from policyprune.runs.stages import measured
from policyprune.runs.state import Content, StateFile, once
from policyprune.runs.summary import closing_words, summary
from policyprune.search.calibration import fit_edits, gather
from policyprune.search.run import search
from policyprune.search.team import Team, leading
from policyprune.search.worker import briefing
from policyprune.surgery import formats
from policyprune.surgery.plan import base_of, check_base
from policyprune.surgery.plan_file import FILE, read_plan, write_plan
from policyprune.surgery.shrink import shrink
from policyprune.tasks import build, check_model
from policyprune.tasks.task import CalibrationUsage
from policyprune.tracking.tracker import Tracker, open_tracker

log = logging.getLogger(__name__)


def run(config: Config, folder: Path) -> Record:
    """Do one run in `folder`, or show the record of the same run when it is finished already."""
    with leading() as team:
        record = finished_before(config, folder, mender(config, folder, export_settings(config)))
        if record is not None:
            log.info("this run is finished already, force=true repeats it")
        else:
            check_budget(config)
            record = _run(config, folder, team)
    print(f"\n{summary(record)}\n\n{closing_words(record, folder)}")
    return record


def check_budget(config: Config) -> None:
    """UsageError for what this machine lacks, and for a budget that no mask can meet, before weights are loaded."""
    device_of(config.model)
    if config.evaluation.fresh_process:
        check_fresh_process()
    embedded_files(config.evaluation.zero_shot)
    empty = skeleton(config.model, config.task)
    check_model(config.task, empty)
    check_lengths(config.evaluation, config.task, empty)
    formats.check_formats(config.export.formats, empty, export_settings(config))
    adapter = adapt(empty)
    space = space_of(adapter, config.granularity.units, config.granularity.spared)
    budget = make_budget(
        config.budget,
        adapter,
        space,
        block_latency(config.model, config.task, config.budget, config.granularity),
        config.granularity.align,
    )
    if isinstance(config.optimizer, Given):
        mask_of(config.optimizer, space, budget)
        check_owner(config.optimizer, empty)


def check_owner(given: Given, model: PreTrainedModel) -> None:
    """UsageError for the mask of a model of another type or size, as far as the plan beside it tells."""
    plan = Path(given.folder).expanduser() / FILE
    if plan.is_file():
        try:
            check_base(read_plan(plan), model)
        except UsageError as error:
            told = str(error).removeprefix("model.source: ")
            raise UsageError(f"optimizer.folder: the mask in {given.folder!r} is not this model's: {told}") from error


def export_settings(config: Config) -> formats.Settings:
    """What the exporters are told."""
    return formats.Settings(config.export.max_shard_size, config.export.gguf_dtype)


@torch.no_grad()
def _run(config: Config, folder: Path, team: Team | None) -> Record:
    torch.manual_seed(config.seed)
    with (
        recorded(config, folder, device_of(config.model)) as record,
        open_tracker(config.tracker, record, folder) as tracker,
    ):
        with measured("load", record.stages):
            model, tokenizer = load(config.model, config.task)
            record.hardware["attention"] = model.config._attn_implementation
            formats.check_formats(config.export.formats, model, export_settings(config), tokenizer)
            base = base_of(model, config.model.source, config.model.revision, config.task.name)
            adapter = adapt(model)
            space = space_of(adapter, config.granularity.units, config.granularity.spared)
            units = space.units
            latency = block_latency(config.model, config.task, config.budget, config.granularity)

            def budget_in(scope: str) -> Budget:
                wanted = replace(config.budget, scope=scope)
                return make_budget(wanted, adapter, space, latency, config.granularity.align)

            budget = budget_in(config.budget.scope)
        with measured("data", record.stages):
            task = build(config.task, tokenizer, model)
            record.protocol = task.protocol
            for line in [*task.check(model), *absurd_from_the_start(task.protocol)]:
                record.warn(line)
            quality = quality_of(task, config.evaluation, tokenizer)
            observed = CalibrationUsage(task)
            if team is not None:
                team.begin(briefing(space.n, task.protocol))
        with measured("rehearsal", record.stages):
            rehearse(config, model, tokenizer, task, quality, folder)
        found, metric = _found(config, model, adapter, space, budget, observed, record, folder, tracker, team)
        mask = space.expand(found.mask)
        smaller = {"pruned": shrink(PrunableModel(model, adapter, space), mask)}
        edits = None
        if config.tuning.name != "none":
            with measured("tuning", record.stages):
                edits, record.tuning = fit_edits(config, model, adapter, units, mask, observed)
                record.calibration["tuning"] = observed.taken()
                smaller["tuned"] = shrink(PrunableModel(model, adapter, space), mask, edits)
        with measured("export", record.stages):
            save_mask(folder / "mask.safetensors", mask, units, space.expand(found.probabilities), edits)
            write_plan(folder / FILE, base, units, mask, edits)
            settings = export_settings(config)
            final = smaller.get("tuned", smaller["pruned"])
            for form in config.export.formats:
                formats.write_format(form, final, tokenizer, formats.target(form, folder, settings), settings)
            checkpoint = formats.target("hf", folder, settings)
        with measured("evaluation", record.stages):
            try:
                for subject, measure in compare(
                    config, model, smaller, adapter, space, quality, metric, checkpoint, budget_in
                ):
                    record.add(subject, *measure)
            except NotTrustworthyError as error:
                record.warnings.append(str(error))
                write_card(record, checkpoint, base.source)  # whoever finds the checkpoint is told
                raise
            if isinstance(config.budget, LatencyBudget):
                last = list(smaller.items())[-1]
                for subject, measure in kept_latency(config.budget, model, last, budget, found.mask):
                    record.add(subject, *measure)
        for line in doubts(record.results):
            record.warn(line)
        if "hf" in config.export.formats:
            write_card(record, checkpoint, base.source)
    return record


def _found(
    config: Config,
    model: PreTrainedModel,
    adapter: Adapter,
    space: Space,
    budget: Budget,
    observed: CalibrationUsage,
    record: Record,
    folder: Path,
    tracker: Tracker,
    team: Team | None,
) -> tuple[Found, Tensor]:
    """What the search found, and the metric (n,) that it started from. The search's own copy of the model ends here."""
    quick = in_search_dtype(model, config.model)
    with measured("importance", record.stages):
        evidence = gather(config, model, quick, adapter, space.units, observed)

        def score() -> Content:
            metric = space.pooled(scores_of(config.importance.name, evidence))
            start = initial_probabilities(metric, space, budget, config.importance)
            return {"metric": metric, "start": start, "calibration": observed.taken()}

        kept = once(StateFile(folder / "importance.state", {"config": record.config_hash}), score)
        metric, start = kept["metric"], kept["start"]
        record.calibration["importance"] = kept["calibration"]
    with measured("search", record.stages):

        def gradients() -> Tensor:
            return evidence.gradients

        found, told = search(
            config, quick, adapter, observed, space, budget, metric, start, gradients, folder, tracker, team
        )
        if team is not None:
            team.dismiss()
        mask = space.expand(found.mask)
        passes = {"forwards": found.forwards, "backwards": found.backwards}
        record.search = {**passes, "units": space.units.n, "kept": int(mask.sum()), **told}
        record.calibration["search"] = observed.taken()
        record.keep_rates = keep_rates(mask, space.units)
    return found, metric
