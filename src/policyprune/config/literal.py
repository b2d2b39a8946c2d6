"""Strings that did not stand on the command line, handed to Hydra and OmegaConf so that they stay what they are."""

import re
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

INTERPOLATION = re.compile(r"(\\*)\$\{")


def literal(value: Any) -> Any:
    """A value for OmegaConf in which no string is interpolated, however deep it stands: `${` is only `${`."""
    if isinstance(value, dict):
        return {key: literal(own) for key, own in value.items()}
    if isinstance(value, list):
        return [literal(own) for own in value]
    if isinstance(value, str):
        return INTERPOLATION.sub(lambda found: 2 * found.group(1) + "\\${", value)
    return value


def quoted(text: str) -> str:
    """A string as the right side of an override: one value, whatever is in it."""
    return QuotedString(str(literal(text)), Quote.single).with_quotes()
