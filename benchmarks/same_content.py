"""What `same.py` compares of the files of a run, and in which places two of them differ."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import deserialize

RENAMED: dict[str, str] = {}  # what was renamed on purpose, old -> new: runs, keys, or strings such as a metric's name
RECORD = ("status", "protocol", "calibration", "search", "tuning", "keep_rates", "results")
TIMED = re.compile(r"seconds|latency|memory")  # keys, and metrics, that no two runs share


def content(path: Path) -> dict[str, Any]:
    """What of a file is compared, in parts by name."""
    if path.name == "record.json":
        record = read(path)
        return untimed({part: own for part, own in record.items() if own and part in {*RECORD, *RENAMED.values()}})
    if path.name == "mask.safetensors":
        return {"mask": {key: own | {"data": sha256(own["data"])} for key, own in deserialize(path.read_bytes())}}
    if path.name in ("plan.json", "config.json"):
        return {path.stem: read(path)} if path.parent.name == "checkpoint" or path.stem == "plan" else {}
    if path.name == "curve.jsonl":
        return {"curve": untimed([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])}
    if path.parent.name == "checkpoint" and path.suffix == ".safetensors":
        return {f"weights {path.stem}": sha256(path.read_bytes())}
    return {}


def untimed(value: Any) -> Any:
    """The same without keys that tell a time or memory."""
    if isinstance(value, dict):
        return {key: untimed(own) for key, own in value.items() if not TIMED.search(key)}
    return [untimed(own) for own in value] if isinstance(value, list) else value


def by_name(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows of results without those of times, by what they measure; rows of the same name in their order."""
    named: dict[str, Any] = {}
    for row in rows:
        if not TIMED.search(row["metric"]):
            name = f"{row['subject']} {row['metric']} {json.dumps(row['protocol'], sort_keys=True)}"
            named[name + "'" * sum(key.rstrip("'") == name for key in named)] = row
    return named


def renamed(value: Any) -> Any:
    """The same by today's names."""
    if isinstance(value, dict):
        return {RENAMED.get(key, key): renamed(own) for key, own in value.items()}
    if isinstance(value, list):
        return [renamed(own) for own in value]
    return RENAMED.get(value, value) if isinstance(value, str) else value


def differences(first: Any, second: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each place (folder, part, keys and numbers) in which two contents differ, and how."""
    if place[1:] == ("results",):
        first, second = by_name(first), by_name(second)
    if isinstance(first, str) and isinstance(second, str) and "\n" in first + second:
        first, second = first.splitlines(), second.splitlines()
    if isinstance(first, list) and isinstance(second, list):
        first, second = (dict(enumerate(own)) for own in (first, second))
    if isinstance(first, dict) and isinstance(second, dict):
        for key in first | second:
            if key in first and key in second:
                yield from differences(first[key], second[key], (*place, str(key)))
            else:
                only, own = ("second", second[key]) if key in second else ("first", first[key])
                yield (*place, str(key)), f"only in the {only}: {own}"[:200]
    elif first != second:
        yield place, f"{str(first)[:100]} != {str(second)[:100]}"


def by_part(found: Iterable[tuple[tuple[str, ...], str]]) -> dict[str, list[str]]:
    """Lines for differences, by the part they are in."""
    parts: dict[str, list[str]] = {}
    for place, how in found:
        parts.setdefault(place[1] if len(place) > 1 else "folders", []).append(f"{': '.join(place)}: {how}")
    return parts


def read(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256(data: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
