"""Run an optimizer on the masked model, with progress bar, curve file, tracker and a state to go on from."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.config.schema import Config
from policyprune.config.validate import fingerprint
from policyprune.errors import RunError, UsageError
from policyprune.models.adapter import Adapter
from policyprune.progress import bar
from policyprune.pruning.budget.budget import Budget
from policyprune.pruning.optimizers import OPTIMIZERS, Found, Problem
from policyprune.pruning.optimizers.problem import Job
from policyprune.pruning.space import Space
from policyprune.runs.curve import NOTHING, Curve, read_curve
from policyprune.runs.state import SearchState, StateFile
from policyprune.runs.status import CURVE_FILE
from policyprune.search.forwards import Forwards
from policyprune.search.team import Team
from policyprune.tasks.task import CalibrationUsage
from policyprune.tracking.tracker import Tracker

log = logging.getLogger(__name__)

HELD_ON_GPU = 10  # steps between two looks at numbers that live on a GPU


@torch.no_grad()
def search(
    config: Config,
    model: PreTrainedModel,
    adapter: Adapter,
    task: CalibrationUsage,
    space: Space,
    budget: Budget,
    metric: Tensor,
    start: Tensor,
    gradients: Callable[[], Tensor] | None,
    folder: Path,
    tracker: Tracker,
    team: Team | None = None,
) -> tuple[Found, dict[str, Any]]:
    """Search for a mask: metric and start (n,), gradients (rows, units.n). Also what the record says of the search.

    `model` is in the data type of the search.

    Writes `curve.jsonl` and `search.state` into `folder` as it goes; goes on where an earlier process ended. RunError
    when too many losses are NaN or infinite. `team`: the processes that share the masks of a step.
    """
    device, dtype = model.device, str(model.dtype).removeprefix("torch.")
    forwards = Forwards(model, adapter, space, task.loss, getattr(config.optimizer, "sliced", False))

    def shared(team: Team, jobs: Sequence[Job]) -> list[Tensor]:
        for _, rows in jobs:
            task.note(rows)  # other processes look at them too
        return team.each(forwards.each, jobs)

    pooled = None if gradients is None else lambda: space.pooled(gradients())
    problem = Problem(
        forwards,
        space,
        budget,
        metric.to(device),
        start.to(device),
        task.lengths,
        config.seed,
        pooled,
        config.importance.per_cost,
        forwards.each if team is None else partial(shared, team),
    )
    path = folder / CURVE_FILE
    file = StateFile(folder / "search.state", {"config": fingerprint(config)})
    before = file.read(lambda content: read_curve(path, content["curve"]) is not None)
    began, skipped = time.perf_counter(), 0
    resumed: list[int] = []  # steps after which a later process went on
    if before is not None:
        if before["device"] != device.type:
            raise UsageError(
                f"model.device: {device.type!r} cannot go on with a search that began on {before['device']!r}, "
                f"use that or remove {file.path}"
            )
        if before["dtype"] != dtype:
            raise UsageError(
                f"model.search_dtype: {dtype} cannot go on with a search that began in {before['dtype']}, "
                f"use that or remove {file.path}"
            )
        began -= before["seconds"]
        task.load(before["calibration"])
        resumed = [*before["resumed"], before["steps"]]
        log.info("the search goes on after step %d", before["steps"])
    every, length = HELD_ON_GPU if device.type == "cuda" else 1, config.optimizer.length
    kept = before["curve"] if before is not None else NOTHING
    with forwards.on(), Curve(path, every, kept[0]) as curve, bar(length, "search", "step") as progress:

        def tell(rows: list[dict[str, float]]) -> None:
            nonlocal skipped
            for values in rows:
                progress.set_postfix(loss=f"{values['loss']:.3f}", keep=f"{values['keep']:.3f}", refresh=False)
                tracker.log(values, step=int(values["step"]))
                skipped += int(values.get("skipped", 0))
            if skipped > config.safety.max_skipped:
                raise RunError(
                    f"{skipped} masks had a loss that is NaN or infinite, more than safety.max_skipped="
                    f"{config.safety.max_skipped}"
                )

        def report(step: dict[str, Tensor | float]) -> None:
            tell(curve.add(step))
            progress.update()

        def around() -> dict[str, Any]:
            tell(curve.flush())
            seconds = time.perf_counter() - began
            return {
                "curve": curve.sync(),
                "steps": int(progress.n),
                "seconds": seconds,
                "resumed": resumed,
                "device": device.type,
                "dtype": dtype,
                "calibration": task.state(),
            }

        earlier = read_curve(path, kept) or []
        progress.n = progress.initial = len(earlier)
        tell(earlier)
        if before is not None and before["found"] is not None:
            found = Found(**before["found"])
        else:
            with SearchState(file=file, safety=config.safety, before=before, around=around) as saving:
                found = OPTIMIZERS[config.optimizer.name](problem, config.optimizer, report, saving)
                saving.end(vars(found))
    return found, {
        "skipped": skipped,
        "resumed": resumed,
        "seconds": round(time.perf_counter() - began, 3),
        "dtype": dtype,
        "processes": 1 if team is None else team.size,
    }
