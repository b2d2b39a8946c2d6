"""What is checked of a run before weights are loaded: this machine, the model's structure, the budget."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from policyprune.config.schema import Config, Task, Text, Trained
from policyprune.errors import UsageError
from policyprune.evaluation.fresh_process import check_fresh_process
from policyprune.evaluation.latency_table import block_latency
from policyprune.evaluation.perplexity import check_lengths
from policyprune.evaluation.zero_shot import embedded_files
from policyprune.models.device import device_of, dtype_of, search_dtype_of
from policyprune.models.loading import skeleton
from policyprune.pruning.budget.budget import Budget, make_budget
from policyprune.pruning.optimizers.no_search import FromRun
from policyprune.pruning.prunable import PrunableModel
from policyprune.recovery.devices import check_device
from policyprune.recovery.material import BATCH
from policyprune.recovery.memory import Step, check_fits, sizes_of
from policyprune.recovery.trainer import computes_in_bfloat16
from policyprune.storage.record_file import PLAN_FILE
from policyprune.surgery import formats
from policyprune.surgery.plan import check_base
from policyprune.surgery.plan_file import read_plan
from policyprune.tasks import check_model
from policyprune.tasks.task import check_positions


def check(config: Config) -> None:
    """UsageError for what this machine lacks, and for a budget that no mask can meet, before weights are loaded."""
    device_of(config.model)
    if config.evaluation.fresh_process:
        check_fresh_process()
    embedded_files(config.evaluation.zero_shot)
    empty = skeleton(config.model, config.task)
    check_model(config.task, empty)
    check_lengths(config.evaluation, config.task, empty)
    formats.check_formats(config.export.formats, empty, formats.Settings.of(config.export))
    if isinstance(config.recovery, Trained):
        check_training(config.recovery, config.task, empty, device_of(config.model))
        check_memory(config, config.recovery, empty)
    prunable = PrunableModel.of(empty, config.granularity.units, config.granularity.spared)
    budget = budgets_of(config, prunable)(config.budget.scope)
    if isinstance(config.optimizer, FromRun):
        config.optimizer.mask(prunable.space, budget)
        check_owner(config.optimizer, empty)


def check_training(options: Trained, task: Task, model: PreTrainedModel, device: torch.device) -> None:
    """UsageError for a device that is not trained on, and for sequences longer than the model's positions."""
    check_device(device)
    if isinstance(task, Text):
        check_positions(model, {"recovery.length": options.length})


def check_memory(config: Config, options: Trained, model: PreTrainedModel) -> None:
    """UsageError for a training on text that a GPU has no room for beside the dense model and the smaller one."""
    device = device_of(config.model)
    if device.type != "cuda" or not isinstance(config.task, Text):
        return
    dense = sizes_of(model)
    smaller, dtype = dense.kept(config.budget.keep), dtype_of(config.model, device)
    held = dtype.itemsize * (dense.outside + dense.inside + smaller.inside)
    teacher = search_dtype_of(config.model.search_dtype, dtype, device)
    if options.needs_teacher and teacher != dtype:
        held += teacher.itemsize * (dense.outside + dense.inside)
    step = Step(
        batch=options.batch_size or BATCH[False],
        length=options.length,
        itemsize=dtype.itemsize,
        bfloat16=computes_in_bfloat16(options.dtype, device),
    )
    check_fits(smaller, options, step, torch.cuda.get_device_properties(device).total_memory - held)


def check_owner(options: FromRun, model: PreTrainedModel) -> None:
    """UsageError for the mask of a model of another type or size, as far as the plan beside it tells."""
    plan = Path(options.folder).expanduser() / PLAN_FILE
    if plan.is_file():
        try:
            check_base(read_plan(plan), model)
        except UsageError as error:
            reason = str(error).removeprefix("model.source: ")
            raise UsageError(
                f"optimizer.folder: the mask in {options.folder!r} is not this model's: {reason}"
            ) from error


def budgets_of(config: Config, prunable: PrunableModel) -> Callable[[str], Budget]:
    """The budget of the config in another scope; a latency table is measured once, here."""
    latency = block_latency(config.model, config.task, config.budget, config.granularity)

    def in_scope(scope: str) -> Budget:
        options = replace(config.budget, scope=scope)
        return make_budget(options, prunable.adapter, prunable.space, latency, config.granularity.align)

    return in_scope
