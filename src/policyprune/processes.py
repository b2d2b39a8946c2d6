"""Which of how many processes this one is, as torchrun says it. Imports no torch."""

import os

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def processes() -> int:
    """Number of processes of this run; 1 when it was started alone."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ and "MASTER_ADDR" in os.environ else 1


def on_this_machine() -> int:
    """Number of processes of this run that share this machine's GPUs."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", processes()))


def rank() -> int:
    """0 for the process that runs the search and writes the files, 1, 2, ... for those that help it."""
    return int(os.environ["RANK"]) if processes() > 1 else 0


def alone() -> None:
    """From here on this process, and those that it starts, have nothing to do with the others."""
    for name in (*VARIABLES, "ACCELERATE_USE_FSDP"):
        os.environ.pop(name, None)
