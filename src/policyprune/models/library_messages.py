"""What transformers and its companions say: silenced where nobody can act on it, or turned into one line of ours."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
import torch
import transformers

from policyprune.config.schema import Model
from policyprune.errors import RunError, UsageError
from policyprune.storage.files import disk_trouble

SILENCED = (  # loggers whose warnings nobody can act on
    "transformers.integrations.heterogeneity.configuration_utils",  # a width is read where layers differ, as it may be
    "transformers.distributed.tensor_parallel",  # no plan is asked for
    "transformers.trainer_utils",  # times of files are not compared on this disk
)
TABLES = ("LOAD REPORT", "tied weights mapping")  # that transformers prints of weights, which we refuse in one line
UNFINISHED = re.compile(r"(:|for field '\w+')$")  # a first line that says nothing without the second


def quiet() -> None:
    """Leave the screen to our own progress bars, and to what somebody can act on."""
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for name in ("httpx", "accelerate"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in SILENCED:
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def silenced() -> Iterator[None]:
    """Keep the warnings that nobody can act on off the screen during the block."""
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in SILENCED}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


@contextmanager
def without_load_report() -> Iterator[None]:
    """Keep transformers' table of missing weights off the screen during the block."""
    logger = logging.getLogger("transformers.modeling_utils")

    def is_no_table(record: logging.LogRecord) -> bool:
        return not any(words in record.getMessage() for words in TABLES)

    logger.addFilter(is_no_table)  # another level would hide or bring other lines
    try:
        yield
    finally:
        logger.removeFilter(is_no_table)


@contextmanager
def as_usage_error(config: Model) -> Iterator[None]:
    """Turn what goes wrong in a library into UsageError in one line; full memory and disks are no model's fault."""
    try:
        yield
    except (UsageError, RunError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if disk_trouble(error) or ("alloc" in str(error) and "memory" in str(error)):
            raise
        raise UsageError(_message(config, error)) from error


def _message(config: Model, error: Exception) -> str:
    text = str(error).strip()
    if "trust_remote_code" in text and not config.trust_remote_code:
        return f"model.source: {config.source!r} brings its own code, model.trust_remote_code=true runs it"
    if type(error).__name__ == "UnpicklingError":
        return f"model.source: {config.source!r} has weights (.bin) that are broken or hold more than tensors"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reason = " ".join(lines[:2] if lines and UNFINISHED.search(lines[0]) else lines[:1])
    if not isinstance(error, OSError | ValueError | ImportError) or not reason:
        reason = f"{type(error).__name__}: {reason}".rstrip(": ")  # which says little by itself, as in KeyError: 'x'
    if "ttention" in reason and config.attn_implementation != "auto":
        return (
            f"model.attn_implementation: {config.attn_implementation!r} is nothing for this model, use auto: {reason}"
        )
    return f"model.source: {config.source!r} cannot be loaded: {reason}"
