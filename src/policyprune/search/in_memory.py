"""A search without a folder, on a model that its owner goes on using."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.config.schema import Config, LatencyBudget
from policyprune.errors import RunError
from policyprune.evaluation.latency_table import layer_latency
from policyprune.models.device import in_search_dtype
from policyprune.models.library_messages import silenced
from policyprune.progress import bar
from policyprune.pruning.budget.budget import Budget, make_budget
from policyprune.pruning.prunable import PrunableModel
from policyprune.search.prune import Pruned, Pruning, prune
from policyprune.tasks.task import CalibrationData


def search(prunable: PrunableModel, data: CalibrationData, config: Config, steps: list[dict[str, float]]) -> Pruned:
    """Scores, search, tuning and the smaller model, as a run of this config has them. `steps` gets the search's rows.

    A bar shows loss and keep rate. Global generators of random numbers stay as they are. RunError when too many losses
    are NaN or infinite.
    """
    pruning = Pruning(
        prunable=prunable,
        quick=prunable.on(in_search_dtype(prunable.model, config.model.search_dtype)),
        data=data,
        budget=_budget(prunable, config),
        importance=config.importance,
        tuning=config.tuning,
        seed=config.seed,
    )
    allowed = config.safety.max_skipped
    devices = [prunable.device] if prunable.device.type == "cuda" else []
    length = config.optimizer.length
    with ExitStack() as stack, torch.random.fork_rng(devices):

        @cache
        def progress() -> Any:  # begins with the search: scores take their time before it
            return stack.enter_context(bar(length, "search", "step"))

        def report(step: dict[str, Tensor | float]) -> None:
            steps.append({name: float(value) for name, value in step.items()})
            progress().set_postfix(loss=f"{steps[-1]['loss']:.3f}", keep=f"{steps[-1]['keep']:.3f}", refresh=False)
            progress().update()
            if len(steps) == length:
                progress().close()  # a tuning follows
            skipped = sum(row.get("skipped", 0) for row in steps)
            if skipped > allowed:
                raise RunError(f"{skipped:.0f} masks had a loss that is NaN or infinite, more than {allowed}")

        torch.manual_seed(config.seed)
        return prune(pruning, config.optimizer, report)


def _budget(prunable: PrunableModel, config: Config) -> Budget:
    """The limits of a mask. For a latency budget a layer is timed, once per machine."""
    model, latency = prunable.model, None
    if isinstance(config.budget, LatencyBudget):
        with torch.device("meta"):
            structure = type(model)(copy.deepcopy(model.config))
        latency = layer_latency(structure, config.budget, config.granularity, prunable.device, model.dtype)
    return make_budget(config.budget, prunable.adapter, prunable.space, latency, config.granularity.align)


@contextmanager
def at_rest(model: PreTrainedModel) -> Iterator[None]:
    """During the block the model neither drops out nor collects gradients of its weights, and libraries are quiet."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        with silenced():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, wanted in flags:
            parameter.requires_grad_(wanted)


def made_usable(smaller: PreTrainedModel, dense: PreTrainedModel) -> PreTrainedModel:
    """The smaller model in eval mode, whose own weights ask for gradients where those of the dense model do."""
    smaller.eval()
    shared = {id(parameter): parameter for parameter in dense.parameters()}
    wanted = any(parameter.requires_grad for parameter in shared.values())
    for parameter in smaller.parameters():
        if id(parameter) not in shared:
            parameter.requires_grad_(wanted)
    return smaller
