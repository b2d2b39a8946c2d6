"""Fields of the schemas: a default, what it means, and which values are valid."""

import copy
import inspect
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import MISSING as REQUIRED
from dataclasses import Field, field, fields, is_dataclass
from typing import Any, get_args

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from policyprune.errors import UsageError

SEEDS = 2**32 - 1  # the largest that all generators take
SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)[KMGT]B", re.IGNORECASE)

TYPES = {  # what OmegaConf says of a value -> what was wanted
    r"could not be converted to Integer": "a whole number",
    r"could not be converted to Float": "a number",
    r"is not a valid bool": "true or false",
    r"is not a ListConfig": "a list, such as [a,b]",
    r"Cannot convert '(list|dict|ListConfig|DictConfig)' to string": "a word",
    r"is not Optional|Incompatible value 'None'": "allowed here",
}


def setting(default: Any = REQUIRED, *, help: str) -> Any:
    """Any value of the type. Without a default it has to be given."""
    return _field(default, help)


def choice(default: Any = REQUIRED, *, choices: Sequence[str], help: str) -> Any:
    """A string that must be one of `choices`; a list of strings must hold nothing else, and none twice."""
    return _field(default, help, choices=tuple(choices))


def named(name: str) -> Any:
    """The name of an option, which is the only valid value."""
    return choice(name, choices=[name], help="which option this is")


def number(
    default: Any = REQUIRED,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    help: str,
) -> Any:
    """A number, or a list of numbers, inside the given bounds (None is allowed where the type is optional)."""
    bounds = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    return _field(default, help, bounds={name: bound for name, bound in bounds.items() if bound is not None})


def size(default: str, *, help: str) -> Any:
    """A number of bytes as transformers reads it: 5GB, 200MB."""
    return _field(default, help, size=True)


def _field(default: Any, help: str, **rule: Any) -> Any:
    metadata = {"help": help, **rule}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Described:
    """Base of dataclasses whose docstrings list their fields: type, default, what is valid, and what it means."""

    def __init_subclass__(cls) -> None:
        """Before the fields are made, so that inherited ones are looked up in the bases."""
        super().__init_subclass__()
        found: dict[str, tuple[Any, Any]] = {}
        for base in reversed(cls.__mro__[1:]):
            found.update({name: (own.type, own) for name, own in vars(base).get("__dataclass_fields__", {}).items()})
        for name, hint in inspect.get_annotations(cls).items():
            found[name] = (hint, vars(cls).get(name))
        lines = [
            f"    {name} ({_valid(hint, own)}): {own.metadata['help']}"
            for name, (hint, own) in found.items()
            if isinstance(own, Field) and "help" in own.metadata and len(own.metadata.get("choices", "  ")) > 1
        ]
        if lines:
            described = re.sub(r"\bnull\b", "None", "\n".join(["Fields:", *lines]))
            cls.__doc__ = f"{inspect.cleandoc(cls.__doc__ or cls.__name__)}\n\n{described}\n"


def _valid(hint: Any, own: Any) -> str:
    """Type, default and range of a field, as Python has them."""
    words = [hint if isinstance(hint, str) else str(hint) if get_args(hint) else hint.__name__]
    if own.default not in (REQUIRED, MISSING):
        words.append(f"default {own.default!r}")
    elif own.default_factory is not REQUIRED:
        words.append(f"default {own.default_factory()!r}")
    if own.metadata.get("choices"):
        words.append(f"of {', '.join(map(repr, own.metadata['choices']))}")
    if own.metadata.get("bounds"):
        words.append(in_words(own.metadata["bounds"]))
    return ", ".join(words)


def check(key: str, value: Any, rule: Any) -> None:
    """Raise UsageError when `value` of the field named `key` breaks the rule in its metadata."""
    items = value if isinstance(value, list) else [value]
    for item in items:
        if item is not None:
            _check_one(key, item, rule)
        if isinstance(value, list) and isinstance(item, list | dict):
            raise UsageError(f"{key}: {item!r} is not a word")
    twice = [item for item, count in Counter(items).items() if count > 1] if rule.get("choices") else []
    if twice:
        raise UsageError(f"{key}: names {twice[0]!r} twice")


def _check_one(key: str, item: Any, rule: Any) -> None:
    choices = rule.get("choices")
    if choices and item not in choices:
        raise UsageError(f"{key}: {item!r} is not one of {', '.join(choices)}")
    if rule.get("size"):
        form = SIZE.fullmatch(item.strip())
        if form is None or float(form.group(1)) <= 0:
            raise UsageError(
                f"{key}: {item!r} is no size of a file, give a number above 0 and a unit such as 5GB or 200MB"
            )
    bounds = rule.get("bounds")
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
    finite = number - number == 0
    if not (finite and all(tests[name](bound) for name, bound in bounds.items())):
        wanted = in_words(bounds) if finite else f"finite and {in_words(bounds)}"
        raise UsageError(f"{key}: {number} is out of range, it must be {wanted}")


def in_words(bounds: dict[str, float]) -> str:
    """The bounds of a number as a message or a page tells them."""
    return " and ".join(f"{name} {bound:.15g}" for name, bound in bounds.items())


def wrong_type(error: OmegaConfBaseException, value: Any = None) -> str:
    """What the value is not, in other words than those of Python's types."""
    message = str(error.msg or error).splitlines()[0]
    for pattern, wanted in TYPES.items():
        if re.search(pattern, message):
            given = error.value if value is None else value
            return f"{'null' if given is None else repr(given)} is not {wanted}"
    return message


def check_added(config: DictConfig, key: str) -> None:
    """Raise UsageError for a key that was added where a dataclass says which there are."""
    parent, _, name = key.rpartition(".")
    schema = OmegaConf.get_type(OmegaConf.select(config, parent))
    if is_dataclass(schema) and name not in (known := [known.name for known in fields(schema)]):
        raise UsageError(f"{key}: unknown key, the choices are {', '.join(known)}")
