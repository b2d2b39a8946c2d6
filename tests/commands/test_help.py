"""What the command line says of itself: the help page and tab completion."""

import os
from pathlib import Path

import pytest

from harness import console
from policyprune.commands.help import USAGE, complete
from policyprune.commands.verbs import VERBS
from policyprune.config.registry import groups, options


def test_every_verb_is_listed(tmp_path: Path) -> None:
    assert list(USAGE) == list(VERBS)
    lines = console("--help", cwd=tmp_path).stdout.splitlines()
    for verb, (words, meaning) in USAGE.items():
        assert f"  {verb:<9} {words}" in lines
        assert f"  {'':<9} {meaning}" in lines
    assert all(len(line) <= 120 for line in lines)


def test_help_lists_every_group_and_option(tmp_path: Path) -> None:
    done = console("--help", cwd=tmp_path)
    assert done.returncode == 0
    listed = done.stdout.partition("groups and their options:\n")[2].partition("\n\n")[0]
    rows: dict[str, list[str]] = {}
    for line in listed.splitlines():
        words = line.replace(",", " ").split()
        if not line.startswith("   "):
            group = words.pop(0)
        rows.setdefault(group, []).extend(words)
    assert rows == {group: options(group) for group in groups()}


@pytest.mark.parametrize(
    ("line", "printed", "left"),
    [
        ("policyprune sw", ["sweep"], "policyprune sw"),
        ("policyprune sweep offline/paper/pg", ["offline/paper/pg_heads_channels", "offline/paper/pg_layers"], None),
        ("policyprune sweep smoke method=fl", [], "policyprune method=fl"),
        ("policyprune finetune model=", [], "policyprune model="),
        ("policyprune model=", [], "policyprune model="),
    ],
)
def test_completion(
    line: str,
    printed: list[str],
    left: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert complete(["-sc", "query=bash"]) == (left is None)
    assert capsys.readouterr().out.split() == printed
    if left is not None:
        assert os.environ["COMP_LINE"] == left
