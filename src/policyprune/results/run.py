"""The life of a run's folder: its record, from `running` to `finished` or `failed`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import yaml

from policyprune.config.schema import Config, Evaluating, Finetuning
from policyprune.config.settle import fingerprint
from policyprune.errors import UsageError
from policyprune.results.record import Record, hardware, read_record

log = logging.getLogger(__name__)


def finished_before(config: Config | Finetuning | Evaluating, folder: Path) -> Record | None:
    """The finished record of the same config in `folder`; UsageError when another config was run there."""
    record = read_record(folder)
    if record is None:
        return None
    if record.config_hash != fingerprint(config):
        raise UsageError(
            f"hydra.run.dir: {str(folder)!r} holds a run of another config ({record.config_hash}), name another folder"
        )
    return record if record.status == "finished" and not config.force else None


@contextmanager
def recorded(config: Config | Finetuning | Evaluating, folder: Path, device: torch.device) -> Iterator[Record]:
    """A record that is on disk as `running` while the block runs, and as `finished` or `failed` after it."""
    folder.mkdir(parents=True, exist_ok=True)
    plain: dict[str, Any] = asdict(config)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    record = Record(
        config=plain,
        config_hash=fingerprint(config),
        hardware=hardware(name, torch.get_num_threads()),
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
    record.write(folder)
    try:
        yield record
    except BaseException as error:
        record.status = "failed"
        record.error = " ".join(f"{type(error).__name__}: {error}".split())
        record.write(folder)
        if not isinstance(error, UsageError):
            log.error("the run failed, %s keeps what it had", folder, exc_info=True)
            error.logged = True  # type: ignore[attr-defined]
        raise
    record.status = "finished"
    record.write(folder)
