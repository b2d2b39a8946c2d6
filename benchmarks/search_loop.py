"""Where the time of a search goes: inside the model's forward passes, or around them.

    python benchmarks/search_loop.py [key=value ...]

Runs a few steps of the configured search and prints the share of forwards, with the masked forward compared with the
dense one in the same run.
"""

import sys
import tempfile
import time
from pathlib import Path

import hydra
import torch

from policyprune.config.composition import register
from policyprune.config.registry import conf_dir
from policyprune.config.validate import validate
from policyprune.models.device import in_search_dtype
from policyprune.models.loading import load
from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.prunable import PrunableModel
from policyprune.search.log import SearchContext, search
from policyprune.search.prune import Pruning, Scores
from policyprune.tasks import Task, build
from policyprune.tasks.task import CalibrationUsage
from policyprune.tracking import NoTracker


class Timed:
    """A task whose losses are timed."""

    def __init__(self, task: Task) -> None:
        self.task, self.lengths, self.seconds, self.calls = task, task.lengths, 0.0, 0

    def loss(self, model, rows):
        began = time.perf_counter()
        losses = self.task.loss(model, rows)
        if losses.is_cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - began
        self.calls += 1
        return losses


def main() -> None:
    register()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        chosen = any(word.startswith(("optimizer=", "method=")) for word in sys.argv[1:])
        words = [] if chosen else ["importance=wanda_sp", "optimizer=policy_gradient"]
        config = validate(hydra.compose("config", [*words, "optimizer.steps=10", *sys.argv[1:]]))
    model, tokenizer = load(config.model, config.task)
    prunable = PrunableModel.of(model, config.granularity.units, config.granularity.spared)
    task = Timed(build(config.task, tokenizer, model))
    start = torch.full((prunable.space.n,), config.budget.keep)
    rows = torch.arange(config.optimizer.batch_size)
    with torch.inference_mode():
        task.loss(model, rows)
        task.seconds, task.calls = 0.0, 0
        for _ in range(5):
            task.loss(model, rows)
        dense = task.seconds / task.calls
    task.seconds, task.calls = 0.0, 0
    usage = CalibrationUsage(task)
    pruning = Pruning(
        prunable=prunable,
        quick=prunable.on(in_search_dtype(model, config.model.search_dtype)),
        data=usage,
        budget=make_budget(config.budget, prunable.adapter, prunable.space),
        importance=config.importance,
        seed=config.seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        context = SearchContext(
            folder=Path(folder), config_hash="", safety=config.safety, tracker=NoTracker(), usage=usage
        )
        began = time.perf_counter()
        search(pruning, Scores(start, start), config.optimizer, context)
        total = time.perf_counter() - began
    masked = task.seconds / task.calls
    print(f"search: {total:.2f} s, {task.calls} forwards, {100 * task.seconds / total:.2f} % of the time inside them")
    print(f"masked forward / dense forward: {masked:.3f} s / {dense:.3f} s = {masked / dense:.3f}")


if __name__ == "__main__":
    main()
