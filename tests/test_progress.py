"""Bars of other packages look like ours, or are not there."""

import re
import types

import pytest
from tqdm import tqdm

from harness import BAR
from policyprune.progress import bar, bars_of


@pytest.mark.parametrize("title", ["", "questions"])
def test_bars_of_others_look_like_ours_or_are_not_there(title: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = types.ModuleType("foreign")
    module.tqdm = tqdm  # type: ignore[attr-defined]
    with bars_of(module, title=title, unit="answer"):
        assert list(module.tqdm([1, 2, 3], desc="Reading all of it!")) == [1, 2, 3]
        with module.tqdm(total=2, desc="Running requests!", disable=False) as progress:
            progress.update(2)
    assert module.tqdm is tqdm
    shown = capsys.readouterr().err
    assert "!" not in shown
    assert ("questions " in shown) == bool(title)
    with bar(1, "own", "step") as progress:
        progress.update()
    lines = re.split(r"[\r\n]+", shown + capsys.readouterr().err)
    assert [line for line in lines if not BAR.fullmatch(line)] == []
