"""The Hydra application behind the verb `run`."""

import os
import sys
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from policyprune.config.complaints import one_line
from policyprune.config.options import conf_dir
from policyprune.config.settle import settle
from policyprune.config.store import register
from policyprune.errors import UsageError


def launch(arguments: list[str]) -> int:
    """Run Hydra on the command line; what the user got wrong is raised as UsageError, before any folder is made."""
    register()
    sys.argv[1:] = arguments
    show_everything = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra prints errors itself, over many lines, and exits with 1
    try:
        _check_before_anything_is_written(arguments)
        _application()
    except (HydraException, OmegaConfBaseException) as error:
        if show_everything:
            raise
        raise UsageError(one_line(error)) from error
    except UsageError:
        raise
    except Exception:  # logged, with its traceback, where it happened
        if show_everything:
            raise
        return 1
    return 0


def _check_before_anything_is_written(arguments: list[str]) -> None:
    parsed = get_args_parser().parse_args(arguments)
    if parsed.hydra_help or parsed.cfg or parsed.info or parsed.shell_completion or parsed.multirun:
        return  # the jobs of a multirun are checked one by one, as they begin
    if any(override.startswith("hydra.mode=") for override in parsed.overrides):
        return
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        settle(hydra.compose(parsed.config_name or "config", parsed.overrides))


@hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")
def _application(composed: DictConfig) -> None:
    config = settle(composed)
    folder = Path(HydraConfig.get().runtime.output_dir)
    from policyprune import pipeline  # imports torch

    pipeline.run(config, folder)
