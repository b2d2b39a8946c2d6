"""Field declarations for the schemas: the valid values stand beside the type, the defaults stand in conf/."""

import re
from collections import Counter
from dataclasses import field, fields, is_dataclass
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from policyprune.errors import UsageError

SEEDS = 2**32 - 1  # the largest that all generators take


def choice(*choices: str) -> Any:
    """A string that must be one of `choices`; a list of strings must hold nothing else."""
    return field(default=MISSING, metadata={"choices": choices})


def number(
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A number inside the given bounds (None is allowed where the type is optional)."""
    bounds = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    return field(default=MISSING, metadata={"bounds": {k: v for k, v in bounds.items() if v is not None}})


def size() -> Any:
    """A number of bytes as transformers reads it: 5GB, 200MB."""
    return field(default=MISSING, metadata={"size": re.compile(r"(\d+(?:\.\d*)?|\.\d+)[KMGT]B", re.IGNORECASE)})


def check(key: str, value: Any, metadata: Any) -> None:
    """Raise UsageError when `value` of the field named `key` breaks the rule in its metadata."""
    items = value if isinstance(value, list) else [value]
    for item in items:
        if item is not None:
            _check_one(key, item, metadata)
    twice = [item for item, count in Counter(items).items() if count > 1] if metadata.get("choices") else []
    if twice:
        raise UsageError(f"{key}: names {twice[0]!r} twice")


def _check_one(key: str, item: Any, metadata: Any) -> None:
    choices = metadata.get("choices")
    if choices and item not in choices:
        raise UsageError(f"{key}: {item!r} is not one of {', '.join(choices)}")
    form = metadata.get("size")
    if form is not None:
        found = form.fullmatch(item.strip())
        if found is None or float(found.group(1)) <= 0:
            raise UsageError(
                f"{key}: {item!r} is no size of a file, give a number above 0 and a unit such as 5GB or 200MB"
            )
    bounds = metadata.get("bounds")
    if not bounds:
        return
    if not isinstance(item, int | float) or isinstance(item, bool):
        raise UsageError(f"{key}: {item!r} is not a number")
    number: float = item
    tests = {
        "above": lambda bound: number > bound,
        "at least": lambda bound: number >= bound,
        "below": lambda bound: number < bound,
        "at most": lambda bound: number <= bound,
    }
    if not (number - number == 0 and all(tests[name](bound) for name, bound in bounds.items())):
        wanted = " and ".join(f"{name} {bound:.15g}" for name, bound in bounds.items())
        raise UsageError(f"{key}: {number} is out of range, it must be {wanted}")


def check_added(config: DictConfig, key: str) -> None:
    """Raise UsageError for a key that was added where a dataclass says which there are."""
    parent, _, name = key.rpartition(".")
    schema = OmegaConf.get_type(OmegaConf.select(config, parent))
    if is_dataclass(schema) and name not in (known := [own.name for own in fields(schema)]):
        raise UsageError(f"{key}: unknown key, the choices are {', '.join(known)}")
