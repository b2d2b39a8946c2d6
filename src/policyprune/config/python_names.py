"""Errors in the words of Python: a key of the command line, such as `budget.keep`, is an argument there."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from policyprune.errors import RunError, UsageError

ARGUMENTS = {
    "budget.keep": "keep",
    "budget.scope": "scope",
    "model.dtype": "dtype",
    "model.source": "model",
    "task.bos": "bos",
    "task.calibration.count": "calibration",
    "task.calibration.length": "length",
}
PHRASES = {"model.dtype=float32 model.search_dtype=float32": "a model loaded with dtype=float32"}
LITERALS = {"null": "None", "true": "True", "false": "False"}
QUOTED = re.compile(r"""((?<!\w)(?:'[^']*'|"[^"]*")(?!\w))""")  # what a caller gave, which stays as it is
KEY = re.compile(r"(?<![\w./-])(?P<key>[a-z_]+(?:\.[a-z_]+)*)(?:=(?P<value>[a-z]\w*)\b)?")


@contextmanager
def in_python(subjects: Mapping[str, str] | None = None) -> Iterator[None]:
    """In the block, or the function that it decorates, errors name arguments of Python instead of keys.

    `subjects` are further names, of what a message begins with: `{"data": "calibration"}` where `data` is called that.
    """
    try:
        yield
    except (UsageError, RunError) as error:
        error.args = (python_names(str(error), subjects or {}),)
        raise


def python_names(message: str, subjects: Mapping[str, str]) -> str:
    """`budget.keep: 2 ..., use optimizer=ppo` becomes `keep: 2 ..., use optimizer='ppo'`."""
    for words, others in PHRASES.items():
        message = message.replace(words, others)
    subject, colon, rest = message.partition(": ")
    if colon:
        subject = subjects.get(subject, ARGUMENTS.get(subject, subject.removeprefix("task.")))
    else:
        subject, rest = "", message
    parts = QUOTED.split(rest)
    parts[::2] = [KEY.sub(_named, part) for part in parts[::2]]
    return f"{subject}{colon}{''.join(parts)}"


def _named(found: re.Match[str]) -> str:
    key, value = ARGUMENTS.get(found["key"], found["key"]), found["value"]
    return key if value is None else f"{key}={LITERALS.get(value, repr(value))}"
