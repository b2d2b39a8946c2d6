"""Rows of a table that were not measured like the others."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 3  # keep rates named one by one


def differences(
    rows: Mapping[str, Mapping[float | None, Sequence[Mapping[str, Any]]]],
) -> dict[str, list[str]]:
    """For each row what sets it apart: `dtype bfloat16, elsewhere float32`, with the keep rates if not at all of them.

    `rows` has the conditions of every run, by the row's name and keep rate. What most runs have is the rule.
    """
    every = [own for keeps in rows.values() for several in keeps.values() for own in several]
    usual: dict[str, str] = {}
    for key in dict.fromkeys(key for own in every for key in own):
        counts = Counter(_text(own[key]) for own in every if own.get(key) is not None)
        if len(counts) > 1:
            usual[key] = counts.most_common(1)[0][0]
    return {name: told for name, keeps in rows.items() if (told := _of_row(keeps, usual))}


def _of_row(keeps: Mapping[float | None, Sequence[Mapping[str, Any]]], usual: Mapping[str, str]) -> list[str]:
    told = []
    for key, rule in usual.items():
        where: dict[str, list[float | None]] = {}
        mixed = False
        for keep, several in keeps.items():
            values = dict.fromkeys(_text(own[key]) for own in several if own.get(key) is not None)
            for value in values:
                if value != rule:
                    where.setdefault(value, []).append(keep)
                    mixed = mixed or len(values) > 1
        for value, at in where.items():
            only = "" if len(at) == len(keeps) else f" at keep {_listed(at)}"
            some = " in some runs" if mixed else ""
            told.append(f"{_title(key)} {value}{only}{some}, elsewhere {rule}")
    return told


def _listed(keeps: Sequence[float | None]) -> str:
    names = [f"{keep:g}" for keep in keeps if keep is not None]
    return ", ".join(names[:SHOWN]) + (" and more" if len(names) > SHOWN else "")


def _title(key: str) -> str:
    return {"tokenizer": "tokenizer hash", "test_text": "test text hash"}.get(key, key.replace("_", " "))


def _text(value: Any) -> str:
    if value == "":
        return "empty"
    return repr(value) if isinstance(value, str) and value.isspace() else str(value)
