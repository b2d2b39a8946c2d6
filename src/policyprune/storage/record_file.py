"""The files of a run by name, and `record.json` as plain JSON, checked for its shape: one tolerance for all readers.

Imports no torch.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policyprune.errors import UsageError

RECORD_FILE, CURVE_FILE = "record.json", "curve.jsonl"
MASK_FILE, PLAN_FILE = "mask.safetensors", "plan.json"
SCHEMA = 1
STATES = ("running", "finished", "interrupted", "failed")
NAMING_KEYS = ("text", "task", "split", "scope", "batch_size", "length", "sequence_length")  # of a protocol: name a row
LISTS = {  # lists of mappings, and the keys that each of these must have
    "stages": {"name", "seconds"},
    "tuning": set(),
    "keep_rates": {"layer", "kind", "rate"},
    "results": {"subject", "metric", "value"},
}
MAPPINGS = ("config", "hardware", "versions", "git", "protocol", "calibration", "search", "recovery", "files")
GROUPS = (
    *("model", "task", "granularity", "budget", "importance", "optimizer"),
    *("tuning", "recovery", "evaluation", "export"),
)
NUMBERS = ("seconds", "kept", "count", "rate", "value", "stderr", "peak_memory_mb", "peak_gpu_memory_mb")


class UnreadableError(UsageError):
    """A record that cannot be understood; `reason` says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{str(path)!r} cannot be read: {reason}")
        self.reason = reason


def read_content(path: Path) -> dict[str, Any] | None:
    """A record as plain JSON in which every known field has its right shape; None where there is no file.

    Unknown fields stay as they are. UnreadableError for what is no whole record of this schema.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnreadableError(path, error.strerror or type(error).__name__) from error
    except (ValueError, RecursionError) as error:
        raise UnreadableError(path, f"it is no JSON ({' '.join(str(error).split())})") from error
    fault = _fault(content)
    if fault:
        raise UnreadableError(path, fault)
    assert isinstance(content, dict)
    return content


def method_name(config: Mapping[str, Any]) -> str | None:
    """The method of a run's config; where it names none, the optimizer and the score that it begins from. None where
    nothing was pruned."""
    named = config.get("method") or config.get("pruned_by")
    named = named.get("name") if isinstance(named, dict) else named
    optimizer, importance = (str(config.get(group, {}).get("name", "")) for group in ("optimizer", "importance"))
    if named or not optimizer:
        return str(named) if named else None
    return importance if optimizer == "one_shot" else f"{optimizer} from {importance}"


def _fault(content: Any) -> str:
    """What keeps a record from being understood, empty where nothing does."""
    if not isinstance(content, dict):
        return "it is no mapping"
    if content.get("schema") != SCHEMA:
        return f"its schema is {content.get('schema')!r}, not {SCHEMA}"
    if content.get("status") not in STATES:
        return f"its status is {content.get('status')!r}"
    if "config" not in content:
        return "it has no config"
    for name in MAPPINGS:
        if not isinstance(content.get(name, {}), dict):
            return f"its {name} is no mapping"
    config = content["config"]
    for name in GROUPS:
        if not isinstance(config.get(name, {}), dict):
            return f"its config.{name} is no mapping"
    for number in (config.get("seed"), config.get("budget", {}).get("keep"), content.get("search", {}).get("seconds")):
        if not isinstance(number, int | float | None):
            return f"{number!r} stands where a number should"
    for file in content.get("files", {}).values():
        if not (isinstance(file, dict) and isinstance(file.get("bytes"), int)):
            return "in its files one lacks its bytes"
    for name, needed in LISTS.items():
        rows = content.get(name, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            return f"its {name} is no list of mappings"
        for row in rows:
            fault = _fault_of_row(row, needed)
            if fault:
                return f"in its {name} {fault}"
    return ""


def _fault_of_row(row: dict[str, Any], needed: set[str]) -> str:
    lacking = sorted(needed - set(row))
    if lacking:
        return f"one lacks {', '.join(lacking)}"
    odd = [name for name in NUMBERS if not isinstance(row.get(name), int | float | None)]
    if odd:
        return f"{odd[0]} is no number"
    protocol = row.get("protocol", {})
    if not isinstance(protocol, dict):
        return "protocol is no mapping"
    odd = [name for name in NAMING_KEYS if not isinstance(protocol.get(name), str | int | float | None)]
    return f"protocol.{odd[0]} is no number or word" if odd else ""
