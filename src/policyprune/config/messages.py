"""Hydra's and OmegaConf's errors, which take many lines, as one line that names the key, the value and the choices."""

import dataclasses
import re
import shlex
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from policyprune.config.fields import wrong_type
from policyprune.errors import UsageError, describe, on_one_line


def one_line(error: Exception) -> str:
    """Return a one-line message for an error of composition."""
    cause = error.__cause__
    if isinstance(cause, UsageError):
        return str(cause)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{group}: {option!r} is not one of {', '.join(error.options)}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {error.message.splitlines()[0]}{hint(error.override)}"
    detail = error if isinstance(error, OmegaConfBaseException) else cause
    if isinstance(detail, ConfigAttributeError | ConfigKeyError):
        return f"{_key(error, detail)}: unknown key, the choices are {', '.join(_choices(detail))}"
    if isinstance(detail, ValidationError):
        return on_one_line(f"{_key(error, detail)}: {wrong_type(detail)}")
    if isinstance(detail, OmegaConfBaseException) and detail.full_key:
        return on_one_line(f"{detail.full_key}: {str(detail.msg or detail).strip().splitlines()[0]}")
    set_elsewhere = re.search(r"In '(\w+)/(\w+)': Config\w+ raised .*?\s+full_key: ((\w+)\.\S+)", str(error), re.DOTALL)
    if set_elsewhere:
        by, option, key, group = set_elsewhere.groups()
        return f"{key}: {by}={option} sets it, and the chosen {group} has no such key; choose another one of the two"
    absent = re.search(r"Could not override '([^']+)'\.\s+No match in the defaults list", str(error))
    if absent:
        return f"{absent[1]}: no group of this verb"
    if isinstance(error, HydraException | OmegaConfBaseException) or cause is not None:
        return on_one_line(str(error) if isinstance(error, HydraException) else str(detail or error))
    return describe(error)


def hint(override: str | None) -> str:
    """How to give a value in which Hydra sees more than a word."""
    key, equals, value = (override or "").partition("=")
    if value.startswith("[") and value.endswith("]") and not re.search(r"[{}()'\"$]", value):
        quoted = ",".join(f'"{word}"' for word in value[1:-1].split(","))
        return "; if it is a list of words, quote them: " + shlex.quote(f"{key}=[{quoted}]")
    if not equals or re.search(r'["$\\]', value):
        return ""
    return "; if it is one word, quote it: " + shlex.quote(f'{key}="{value}"')


def _key(error: Exception, detail: OmegaConfBaseException) -> str:
    named = re.search(r"Could not override '([^']+)'|merging override (\S+?)=", str(error))
    key = (named.group(1) or named.group(2)) if named else (detail.full_key or detail.key)
    return str(key).lstrip("+~")


def _choices(detail: OmegaConfBaseException) -> list[str]:
    schema: Any = detail.object_type
    if dataclasses.is_dataclass(schema):
        return [field.name for field in dataclasses.fields(schema)]
    return [str(key) for key in detail.parent_node] if detail.parent_node is not None else []
