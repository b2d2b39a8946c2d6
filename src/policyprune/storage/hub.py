"""Whether the hub can be reached: asked before anything is loaded. Decides what `auto` comes to."""

import functools
import os
import time
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from policyprune.errors import UsageError

TIMEOUT, PAUSE = 10, 1  # seconds: of one question, and before the second one
NO_NETWORK = "no network"
UNCONNECTED = {"ConnectError", "ConnectTimeout", "ProxyError", "ConnectionError"}  # of whichever HTTP client there is


def decided(key: str, wanted: str, source: str) -> str:
    """`hub` or `embedded` for `wanted`, which may be `auto`: the hub where it answers or its copy is on this disk.

    UsageError where the hub answers with an error of its own, as nobody would notice other data after a hiccup.
    """
    if wanted != "auto":
        return wanted
    obstacle = trouble(source)
    if obstacle and obstacle != NO_NETWORK:
        raise UsageError(
            f"{key}: auto cannot be decided, the hub did not answer for {source!r} as it should ({obstacle}); "
            f"try again, or set {key}=hub or {key}=embedded"
        )
    return "embedded" if obstacle and not cached(source) else "hub"


@functools.cache
def trouble(source: str) -> str:
    """What keeps the hub from giving a data set: "", NO_NETWORK (also in offline mode), or what is wrong with the hub.

    Asked once a process, twice where there is no answer.
    """
    obstacle = ""
    for pause in (PAUSE, 0):
        if constants.is_offline_mode():
            return NO_NETWORK
        try:
            HfApi().dataset_info(source, timeout=TIMEOUT)
        except Exception as error:  # the errors are those of whichever HTTP client is installed
            obstacle = _named(error)
        else:
            return ""
        if not obstacle:
            return ""
        time.sleep(pause)
    return obstacle


def _named(error: Exception) -> str:
    """What is wrong with the hub or the network; "" where the question is wrong, as for an unknown name."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return f"status {status}" if status >= 500 or status == 429 else ""
    if UNCONNECTED & {kind.__name__ for kind in type(error).__mro__}:
        return NO_NETWORK
    return type(error).__name__


def snapshot(source: str) -> Path | None:
    """The copy of a data set's files in the hub cache."""
    try:
        return Path(snapshot_download(source, repo_type="dataset", local_files_only=True))
    except (OSError, ValueError):
        return None


def cached(source: str) -> bool:
    """Whether a data set is on this disk, as files of the hub or as tables of `datasets`."""
    tables = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    return snapshot(source) is not None or (tables / source.replace("/", "___")).is_dir()
