"""What a run tells an experiment tracker, W&B or TensorBoard; one that fails never ends the run."""

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from policyprune.config import schema
from policyprune.config.schema import Wandb
from policyprune.runs.record import Record
from policyprune.runs.summary import distinctions
from policyprune.storage.record_file import NAMING_KEYS

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """What a run tells a tracker."""

    def log(self, values: Mapping[str, float], step: int, stage: str = "search") -> None:
        """Values of one step of the search, or of another stage."""

    def finish(self, summary: Mapping[str, Any], keep_rates: list[dict[str, Any]], failed: bool) -> None:
        """Final metrics and the keep rate of each layer; ends the tracker's run."""


class NoTracker:
    """Tells nobody."""

    def log(self, values: Mapping[str, float], step: int, stage: str = "search") -> None:
        """Nothing."""

    def finish(self, summary: Mapping[str, Any], keep_rates: list[dict[str, Any]], failed: bool) -> None:
        """Nothing."""


class Forgiving:
    """A tracker whose first failure is logged in one line and silences it."""

    def __init__(self, start: Callable[[], Tracker]) -> None:
        self._tracker: Tracker = NoTracker()
        self._try(lambda: setattr(self, "_tracker", start()))

    def log(self, values: Mapping[str, float], step: int, stage: str = "search") -> None:
        """Values of one step of a stage."""
        self._try(lambda: self._tracker.log(values, step, stage))

    def finish(self, summary: Mapping[str, Any], keep_rates: list[dict[str, Any]], failed: bool) -> None:
        """Final metrics; ends the tracker's run."""
        self._try(lambda: self._tracker.finish(summary, keep_rates, failed))

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # a tracker may raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            log.warning("the tracker failed and is off from here on, the run goes on: %s", reason)
            self._tracker = NoTracker()


@contextmanager
def open_tracker(settings: schema.Tracker, record: Record, folder: Path) -> Iterator[Tracker]:
    """The tracker that the config asks for; told the record's results when the block ends, even by an error."""
    if settings.name == "none":
        yield NoTracker()
        return

    def start() -> Tracker:
        if isinstance(settings, schema.Wandb):
            return WandbTracker(config=settings, name=folder.name, run_config=record.config, folder=folder)
        return TensorBoardTracker(record.config, folder)

    tracker = Forgiving(start)
    failed = True
    try:
        yield tracker
        failed = False
    finally:
        tracker.finish(named_results(record), record.keep_rates, failed)


def named_results(record: Record) -> dict[str, float | int | None]:
    """Every result under a name of its own: subject/metric/task, split, scope, batch size, length, where it has them.

    The spread of a latency stands beside it, under `.../spread`.
    """
    names = [
        "/".join([row.subject, row.metric, *(str(row.protocol[key]) for key in NAMING_KEYS if key in row.protocol)])
        for row in record.results
    ]
    words = distinctions(names, [row.protocol for row in record.results])
    values: dict[str, float | int | None] = {}
    for row, name, word in zip(record.results, names, words, strict=True):
        full = f"{name}/{word}" if word else name
        assert full not in values, full
        values[full] = row.value
        if row.protocol.get("spread") is not None:
            values[f"{full}/spread"] = row.protocol["spread"]
    return values


class WandbTracker:
    """Weights & Biases: the search curve, a table of keep rates, the final metrics as summary."""

    def __init__(self, *, config: Wandb, name: str, run_config: dict[str, Any], folder: Path) -> None:
        self._run = _started(config, folder, name=name, config=run_config)

    def log(self, values: Mapping[str, float], step: int, stage: str = "search") -> None:
        """One point of a stage's curve; steps of W&B only rise, so later stages bring theirs as a value."""
        own = {f"{stage}/{key}": value for key, value in values.items()}
        if stage == "search":
            self._run.log(own, step=step)
        else:
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._run.log({**own, f"{stage}/step": step})

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


class TensorBoardTracker:
    """Event files in `folder/tensorboard`; `tensorboard --logdir outputs` compares the runs."""

    def __init__(self, run_config: dict[str, Any], folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._config = run_config
        self._writer = SummaryWriter(str(folder / "tensorboard"))  # type: ignore[no-untyped-call]

    def log(self, values: Mapping[str, float], step: int, stage: str = "search") -> None:
        """One point of a stage's curve."""
        for key, value in values.items():
            self._writer.add_scalar(f"{stage}/{key}", value, step)  # type: ignore[no-untyped-call]

    def finish(self, summary: Mapping[str, Any], keep_rates: list[dict[str, Any]], failed: bool) -> None:
        """The keep rate of each layer as a curve over the layers, the metrics beside the config; close the files."""
        for row in keep_rates:
            self._writer.add_scalar(f"keep_rate/{row['kind']}", row["rate"], row["layer"])  # type: ignore[no-untyped-call]
        if summary and not failed:
            metrics = {key: value for key, value in summary.items() if value is not None}
            self._writer.add_hparams(flat(self._config), metrics, run_name=".")  # type: ignore[no-untyped-call]
        self._writer.close()  # type: ignore[no-untyped-call]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | float | str]:
    """A nested config under dotted keys; what is no bool, number or string is written as JSON, null is left out."""
    values: dict[str, bool | float | str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{key}.")
        elif value is not None:
            values[prefix + key] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return values
