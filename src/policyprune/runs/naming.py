"""Names of measured rows that no two rows share."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def told_apart(names: Sequence[str], protocols: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each row the words that tell it from others of the same name; "" where its name is its own.

    They are `key value` for every part of the protocols in which rows of that name differ, and a number where they
    differ in none.
    """
    groups: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        groups.setdefault(name, []).append(number)
    words = [""] * len(names)
    for members in groups.values():
        if len(members) > 1:
            own = [protocols[number] for number in members]
            keys = [key for key in dict.fromkeys(key for one in own for key in one) if _differs(key, own)]
            told = [", ".join(f"{key} {one[key]}" for key in keys if key in one) for one in own]
            often = Counter(told)
            for place, (number, text) in enumerate(zip(members, told, strict=True), start=1):
                words[number] = text if text and often[text] == 1 else f"{text} no. {place}".strip()
    return words


def _differs(key: str, protocols: Sequence[Mapping[str, Any]]) -> bool:
    return len({repr(one.get(key)) for one in protocols}) > 1
