"""Measured rows as they are shown: what names them, and whether a time is noisy."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

NOISY = 0.10  # of the median: a time is called noisy where the interquartile range of its rounds is wider


def distinctions(names: Sequence[str], protocols: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each row the words that tell it from other rows of the same name; "" where no other has its name.

    The words are `key value` for each part of the protocol in which rows of that name differ, and a number where they
    differ in none.
    """
    groups: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        groups.setdefault(name, []).append(number)
    words = [""] * len(names)
    for members in groups.values():
        if len(members) > 1:
            namesakes = [protocols[number] for number in members]
            keys = [key for key in dict.fromkeys(key for each in namesakes for key in each) if _differs(key, namesakes)]
            texts = [", ".join(f"{key} {each[key]}" for key in keys if key in each) for each in namesakes]
            count = Counter(texts)
            for place, (number, text) in enumerate(zip(members, texts, strict=True), start=1):
                words[number] = text if text and count[text] == 1 else f"{text} no. {place}".strip()
    return words


def noise(protocol: Mapping[str, Any]) -> str:
    """What a reader of a time or a ratio has to know of its rounds: `noisy, spread 23 %`; "" where all is well."""
    if "spread" not in protocol:
        return ""  # no time
    spread = protocol["spread"]
    if spread is None:
        return "one round"
    return f"noisy, spread {100 * spread:.0f} %" if spread > NOISY else ""


def _differs(key: str, protocols: Sequence[Mapping[str, Any]]) -> bool:
    return len({repr(each.get(key)) for each in protocols}) > 1
