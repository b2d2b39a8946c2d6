"""A table of wrong command lines: each is one line on stderr, exit code 2, and nothing is left."""

import dataclasses
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from command_lines import TABLE, replaced
from harness import validated

Refusal = Callable[..., str]
SECONDS = 10


@pytest.mark.parametrize(("arguments", "words"), TABLE)
def test_a_wrong_command_line(refusal: Refusal, tmp_path: Path, arguments: list[str], words: str) -> None:
    began = time.monotonic()
    line = refusal(*replaced(arguments, tmp_path))
    assert words in line
    assert line.isprintable()
    assert time.monotonic() - began < SECONDS


def test_the_table_is_long_enough() -> None:
    rows = [tuple(arguments) for arguments, _ in TABLE]
    assert len(set(rows)) == len(rows) >= 200
    first = {arguments[0] for arguments in rows if arguments}
    assert {"run", "sweep", "finetune", "evaluate", "export", "apply", "doctor", "report"} <= first


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a typed config, each with its annotation."""
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", hints[field.name]


WRONG = {
    int: ["abc", "1.5", "[1]", "{a: 1}", "''", "null"],
    float: ["abc", "[1]", "{a: 1}", "''", "null", "true"],
    bool: ["abc", "[true]", "{a: true}", "null"],
    str: ["[a]", "{a: b}", "null"],
    list: ["abc", "3", "{a: 1}", "null", "[{a: 1}]", "[[a]]"],
    dict: ["abc", "3", "[1]", "null", "{a: [1]}"],
}


def wrong(annotation: Any) -> list[str]:
    """Values of another type than the annotation."""
    optional = isinstance(annotation, types.UnionType)
    kind = next(part for part in get_args(annotation) if part is not type(None)) if optional else annotation
    return [value for value in WRONG[get_origin(kind) or kind] if not (optional and value == "null")]


GIVEN = ["optimizer=ppo", "tuning=reconstruct", "budget=latency", "tracker=wandb"]
KEYS = dict(leaves(validated(*GIVEN)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([(key, value) for key, hint in KEYS.items() for value in wrong(hint)]))
def test_no_key_takes_a_value_of_another_type(refusal: Refusal, pair: tuple[str, str]) -> None:
    key, value = pair
    line = refusal(*GIVEN, f"{key}={value}")
    assert key in line


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(KEYS)), st.sampled_from("~+"), st.text(st.characters(exclude_characters="\0"), max_size=9)
)
def test_no_unknown_key_is_taken(refusal: Refusal, key: str, sign: str, text: str) -> None:
    assert refusal(f"{sign}{key}_nope={text}")
