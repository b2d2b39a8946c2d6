"""What the processes of rank 1, 2, ... do in a run: load the model and the data, and evaluate masks for rank 0."""

import logging
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch

from policyprune.config.schema import Config, Generated, Text
from policyprune.errors import RunError
from policyprune.models.device import in_search_dtype
from policyprune.models.loading import load
from policyprune.pruning.optimizers.problem import Each
from policyprune.pruning.prunable import PrunableModel
from policyprune.search.forwards import Forwards
from policyprune.search.team import Team
from policyprune.tasks import build


def briefing(n: int, protocol: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in all processes: the number of decisions, and where the data came from."""
    same = {key: value for key, value in protocol.items() if key != "bos_measured"}  # by rank 0 alone
    return {"decisions": n, "protocol": same}


@torch.no_grad()
def work(config: Config) -> int:
    """Evaluate masks for rank 0 to the end of its search, without files or words of one's own; the exit code."""
    logging.disable()
    try:
        team = Team()
        for number in (signal.SIGINT, signal.SIGTERM):  # rank 0 saves first, then all end
            signal.signal(number, signal.SIG_IGN)
        with ExitStack() as stack:
            team.serve(lambda expected: stack.enter_context(prepared(config, expected)))
    except RunError:  # rank 0 has told the user, or is gone
        return 1
    return 0


@contextmanager
def prepared(config: Config, expected: dict[str, Any]) -> Iterator[Each]:
    """How this process evaluates masks; ValueError where its briefing is not the one that rank 0 `expected`."""
    model, tokenizer = load(config.model, config.task)
    options = config.task
    if isinstance(options, Text):
        options = replace(options, bos=expected["protocol"]["bos"])
    task = build(options, tokenizer, model if isinstance(options, Generated) else None)
    prunable = PrunableModel.of(model, config.granularity.units, config.granularity.spared)
    if briefing(prunable.space.n, task.protocol) != expected:
        raise ValueError("the model or the data are not the same as on rank 0")
    quick = prunable.on(in_search_dtype(model, config.model.search_dtype))
    forwards = Forwards(quick, task.loss, config.optimizer.sliced)
    with forwards.on():
        yield forwards.each
