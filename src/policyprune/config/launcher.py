"""Starting the jobs of a sweep through Hydra's launchers: here one after the other, in processes, or on a cluster."""

import importlib.util
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig

from policyprune.config.literal import quoted
from policyprune.config.schema import Config
from policyprune.config.sweep import Job, Sweep, join_group
from policyprune.config.validate import validate
from policyprune.errors import UsageError

Action = Callable[[Config, Path], object]
NEEDED = {
    "joblib": "hydra_joblib_launcher",
    "workers": "hydra_joblib_launcher",
    "slurm": "hydra_submitit_launcher",
    "submitit_local": "hydra_submitit_launcher",
    "submitit_slurm": "hydra_submitit_launcher",
}


def check_launcher(overrides: list[str]) -> None:
    """UsageError for a launcher whose package is missing."""
    for override in overrides:
        key, _, name = override.partition("=")
        if key == "hydra/launcher" and name in NEEDED and not _installed(NEEDED[name]):
            raise UsageError(f"hydra/launcher: {name!r} needs an extra, pip install 'policyprune[cluster]'")


def launch(sweep: Sweep, jobs: list[Job], action: Action) -> None:
    """Do `action(config, folder)` for each job; one that fails does not stop the others.

    `action` may be called in another process, so it is a function of a module, and what came of it is in the records.
    """
    launcher = Plugins.instance().instantiate_launcher(
        HydraContext(config_loader=sweep.loader, callbacks=Callbacks(sweep.master)),
        partial(_perform, sweep.name, action),
        sweep.master,
    )
    points = [[*job.overrides, *job.decided, f"hydra.sweep.subdir={quoted(job.folder.name)}"] for job in jobs]
    launcher.launch(points, initial_job_idx=0)


def _perform(name: str, action: Action, composed: DictConfig) -> None:
    """One job, in whatever process the launcher chose."""
    hydra_config = HydraConfig.get()
    # the record tells this very job, whatever program the launcher started
    sys.argv[:] = ["policyprune", "sweep", name, *hydra_config.overrides.task]
    os.chdir(hydra_config.runtime.cwd)  # with hydra.job.chdir relative paths would mean something else
    config = validate(composed)
    join_group(config, name)
    action(config, Path(hydra_config.runtime.output_dir))


def _installed(plugin: str) -> bool:
    try:
        return importlib.util.find_spec(f"hydra_plugins.{plugin}") is not None
    except ModuleNotFoundError:
        return False
