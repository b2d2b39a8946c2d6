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

from policyprune.config.options import conf_dir
from policyprune.config.store import register
from policyprune.config.validate import validate
from policyprune.models.adapter import adapt
from policyprune.models.device import in_search_dtype
from policyprune.models.loading import load
from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.space import space_of
from policyprune.search.run import search
from policyprune.tasks import Task, build
from policyprune.tracking.tracker import NoTracker


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
        config = validate(hydra.compose("config", ["optimizer.steps=10", *sys.argv[1:]]))
    model, tokenizer = load(config.model, config.task)
    adapter = adapt(model)
    space = space_of(adapter, config.granularity.units, config.granularity.spared)
    budget = make_budget(config.budget, adapter, space)
    task = Timed(build(config.task, tokenizer, model))
    start = torch.full((space.n,), config.budget.keep)
    rows = torch.arange(config.optimizer.batch_size)
    with torch.inference_mode():
        task.loss(model, rows)
        task.seconds, task.calls = 0.0, 0
        for _ in range(5):
            task.loss(model, rows)
        dense = task.seconds / task.calls
    task.seconds, task.calls = 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        search(
            config,
            in_search_dtype(model, config.model),
            adapter,
            task,
            space,
            budget,
            start,
            start,
            None,
            Path(folder),
            NoTracker(),
        )
        total = time.perf_counter() - began
    masked = task.seconds / task.calls
    print(f"search: {total:.2f} s, {task.calls} forwards, {100 * task.seconds / total:.2f} % of the time inside them")
    print(f"masked forward / dense forward: {masked:.3f} s / {dense:.3f} s = {masked / dense:.3f}")


if __name__ == "__main__":
    main()
