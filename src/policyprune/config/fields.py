"""Field declarations for the schemas: the valid values stand beside the type, the defaults stand in conf/."""

import math
from dataclasses import field
from typing import Any

from omegaconf import MISSING

from policyprune.errors import UsageError


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


def check(key: str, value: Any, metadata: Any) -> None:
    """Raise UsageError when `value` of the field named `key` breaks the rule in its metadata."""
    for item in value if isinstance(value, list) else [value]:
        if item is None:
            continue
        choices = metadata.get("choices")
        if choices and item not in choices:
            raise UsageError(f"{key}: {item!r} is not one of {', '.join(choices)}")
        bounds = metadata.get("bounds", {})
        tests = {
            "above": lambda bound, x=item: x > bound,
            "at least": lambda bound, x=item: x >= bound,
            "below": lambda bound, x=item: x < bound,
            "at most": lambda bound, x=item: x <= bound,
        }
        if bounds and not (math.isfinite(item) and all(tests[name](bound) for name, bound in bounds.items())):
            wanted = " and ".join(f"{name} {bound:g}" for name, bound in bounds.items())
            raise UsageError(f"{key}: {item} is out of range, it must be {wanted}")
