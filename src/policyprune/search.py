"""Run an optimizer against the masked model, with a progress bar, a curve file and the tracker."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.config.schema import Config
from policyprune.models.adapter import Adapter
from policyprune.progress import bar
from policyprune.pruning.budget import Budget
from policyprune.pruning.masking import Masking
from policyprune.pruning.optimizers import OPTIMIZERS, Found, Problem
from policyprune.pruning.space import Space
from policyprune.results.curve import Curve
from policyprune.surgery.shrink import cut, twin
from policyprune.tasks import Task
from policyprune.tracking import Tracker

HELD_ON_GPU = 10  # steps between two looks at numbers that live on a GPU


@torch.no_grad()
def search(
    config: Config,
    model: PreTrainedModel,
    adapter: Adapter,
    task: Task,
    space: Space,
    budget: Budget,
    metric: Tensor,
    start: Tensor,
    gradients: Callable[[], Tensor] | None,
    folder: Path,
    tracker: Tracker,
) -> Found:
    """Search for a mask: metric and start (n,). Writes `curve.jsonl` into `folder` as it goes."""
    masking = Masking(adapter, space)
    device = model.device

    last: tuple[Tensor, PreTrainedModel] | None = None

    def evaluate(masks: Tensor, rows: Tensor) -> Tensor:
        nonlocal last
        if not getattr(config.optimizer, "sliced", False):
            masking.set(masks)
            return task.loss(model, rows)
        if last is None or not torch.equal(masks[0], last[0]):
            smaller = twin(model)
            cut(smaller, adapter, space, masks[0])
            last = (masks[0], smaller)
        return task.loss(last[1], rows)

    problem = Problem(
        evaluate, space, budget, metric.to(device), start.to(device), task.lengths, config.seed, gradients
    )
    every = HELD_ON_GPU if device.type == "cuda" else 1
    steps = getattr(config.optimizer, "steps", getattr(config.optimizer, "iterations", 0))
    with masking.on(model), Curve(folder / "curve.jsonl", every) as curve, bar(steps, "search", "step") as progress:

        def report(step: dict[str, Tensor | float]) -> None:
            for values in curve.add(step):
                progress.set_postfix(loss=f"{values['loss']:.3f}", keep=f"{values['keep']:.3f}", refresh=False)
                tracker.log(values, step=int(values["step"]))
            progress.update()

        return OPTIMIZERS[config.optimizer.name](problem, config.optimizer, report)
