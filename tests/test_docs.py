"""The examples of the pages run."""

import re
from pathlib import Path
from typing import Any

import pytest

from policyprune.models.families import FAMILIES

DOCS = Path(__file__).parents[1] / "docs"


def test_the_example_of_add_a_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's blocks, one after the other, in one namespace: the table, and the check."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "add-a-model.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.setattr("policyprune.models.families.FAMILIES", dict(FAMILIES))
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(block, namespace)
    gaps = namespace["gaps"]
    assert set(gaps) == {"masked = shrunk", "pruned again", "cache", "bfloat16"}
    assert all(value <= (5e-2 if column == "bfloat16" else 1e-4) for column, value in gaps.items())
    assert namespace["GPTJ"].model_types[0] not in FAMILIES
