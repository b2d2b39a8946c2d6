"""Weights & Biases: runs as they go, and reports on many runs."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policyprune.config.schema import Wandb

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)


class WandbTracker:
    """Weights & Biases: the search curve, a table of keep rates, the final metrics as summary."""

    def __init__(self, *, config: Wandb, name: str, run_config: dict[str, Any], folder: Path) -> None:
        self._run = _started(config, folder, name=name, config=run_config)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One point of the search curve."""
        self._run.log({f"search/{key}": value for key, value in values.items()}, step=step)

    def finish(self, summary: Mapping[str, Any], keep_rates: list[dict[str, Any]], failed: bool) -> None:
        """Write the summary and the table, and close the run."""
        if keep_rates:
            import wandb

            columns: list[str | int] = list(keep_rates[0])
            data = [list(row.values()) for row in keep_rates]
            self._run.log({"keep_rates": wandb.Table(columns=columns, data=data)})
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=int(failed))


def track_report(
    configs: Sequence[Mapping[str, Any]], wanted: bool, name: str, folder: Path, files: Sequence[Path]
) -> None:
    """Give a report on runs to W&B: the cells as a table, the plots as images, all files as an artifact.

    It goes to the project and group of the runs, as their configs say; where they went nowhere, by wish to a default
    project. A failure is one warning.
    """
    try:
        settings = _settings(configs)
        if settings is not None or wanted:
            _log_report(settings or _default(), name, folder, files)
    except Exception as error:  # a tracker may raise anything
        log.warning("the report was not tracked: %s", " ".join(str(error).split()) or type(error).__name__)


def _settings(configs: Sequence[Mapping[str, Any]]) -> Wandb | None:
    trackers = [config.get("tracker") or {} for config in configs]
    return next((Wandb(**tracker) for tracker in trackers if tracker.get("name") == "wandb"), None)


def _default() -> Wandb:
    mode = os.environ.get("WANDB_MODE", "offline")
    return Wandb(name="wandb", project="policyprune", entity=None, mode=mode, group=None, job_type="report", tags=[])


def _log_report(settings: Wandb, name: str, folder: Path, files: Sequence[Path]) -> None:
    import pandas as pd
    import wandb

    label = re.sub(r"[^\w.-]+", "-", name)
    settings = replace(settings, group=settings.group or name, job_type="report")
    run = _started(settings, folder, name=f"report-{label}")
    artifact = wandb.Artifact(f"report-{label}", type="report")
    for path in files:
        artifact.add_file(str(path), name=path.relative_to(folder).as_posix())
        if path.suffix == ".png":
            run.log({f"report/{path.stem}": wandb.Image(str(path))})
        elif path.suffix == ".csv":
            run.log({"report/cells": wandb.Table(dataframe=pd.read_csv(path).astype(object))})
    run.log_artifact(artifact)
    run.finish()


def _started(settings: Wandb, folder: Path, **details: Any) -> "wandb.Run":
    """A run of W&B that writes below `folder`."""
    import wandb

    return wandb.init(
        project=settings.project,
        entity=settings.entity,
        mode=settings.mode,  # type: ignore[arg-type]
        group=settings.group,
        job_type=settings.job_type,
        tags=settings.tags,
        dir=str(folder),
        settings=wandb.Settings(silent=True),
        **details,
    )
