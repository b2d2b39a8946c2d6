"""Fields of options: what `help` says of them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, fields

import pytest
from omegaconf import OmegaConf

import policyprune as pp
from policyprune.config.fields import Described, choice, named, number, setting
from policyprune.config.registry import OPTIONS, option

KINDS = [option(group, name) for group in ("importance", "optimizer", "tuning") for name in OPTIONS[group]]


@dataclass(kw_only=True)
class Base(Described):
    """What is common.

    And more.
    """

    name: str = setting(help="of all")
    count: int | None = number(3, at_least=1, below=9, help="how many; null: all")


@dataclass(kw_only=True)
class Special(Base):
    name: str = named("special")
    modes: list[str] = choice(["slow"], choices=("slow", "fast"), help="which")


def test_a_docstring_lists_type_default_range_and_meaning() -> None:
    common = "    count (int | None, default 3, at least 1 and below 9): how many; None: all\n"
    assert Base.__doc__ == f"What is common.\n\nAnd more.\n\nFields:\n    name (str): of all\n{common}"
    own = "    modes (list[str], default ['slow'], of 'slow', 'fast'): which\n"
    assert Special.__doc__ == f"Special\n\nFields:\n{common}{own}"


@pytest.mark.parametrize("kind", [*KINDS, pp.Budget, pp.LatencyBudget, pp.Granularity])
def test_every_field_of_an_option_is_described(kind: type) -> None:
    for own in fields(kind):
        known = own.name == "name" and len(own.metadata.get("choices", "  ")) == 1
        assert known or f"\n    {own.name} (" in str(kind.__doc__)


def test_help_shows_them() -> None:
    code = "import sys, policyprune as pp; help(pp.PolicyGradient); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "steps (int, default 80, at least 1): steps of the search" in done.stdout


def test_a_granularity_and_a_budget_have_names_in_python_alone() -> None:
    assert pp.Granularity(units=["attention", "ffn"]).name == "attention+ffn"
    assert pp.Granularity(name="mine", units=["ffn"]).name == "mine"
    assert pp.Budget(keep=0.5).name == "rate"
    assert "name" in OmegaConf.missing_keys(OmegaConf.structured(pp.Granularity))
