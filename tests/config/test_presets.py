"""Options by their names, without Hydra, are what the command line composes."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from harness import validated
from policyprune.config.presets import PARTS, checked, compose, granularity_of
from policyprune.config.registry import option, options
from policyprune.config.schema import Budget, Calibration, Config, Evaluation, Export, LanguageModeling, Model, Tracker
from policyprune.errors import UsageError

GRANULARITIES = [None, *options("granularity")]


def config(**given: object) -> Config:
    """A run of 4,096 sequences, checked."""
    parts = compose(given)
    return checked(
        Config(
            model=Model(name="tiny", source="tiny"),
            task=LanguageModeling(name="text", files=["text"], calibration=Calibration()),
            evaluation=Evaluation(name="none", lengths=[], one_shot=[], fresh_process=False),
            export=Export(name="none"),
            tracker=Tracker(name="none"),
            **parts,
        )
    )


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("method", [None, *options("method")])
def test_a_method_is_the_command_lines(method: str | None, granularity: str | None) -> None:
    overrides = [f"{group}={name}" for group, name in (("method", method), ("granularity", granularity)) if name]
    expected = parts_or_refusal(lambda: validated(*overrides))
    assert parts_or_refusal(lambda: config(method=method, granularity=granularity)) == expected


def parts_or_refusal(make: Callable[[], Config]) -> list[Any] | str:
    """The parts of a config, or why there is none."""
    try:
        made = make()
    except UsageError as error:
        return str(error)
    return [getattr(made, group) for group in PARTS]


@pytest.mark.parametrize(
    ("group", "name"),
    [(group, name) for group in ("optimizer", "importance", "tuning", "budget") for name in options(group)],
)
def test_an_option_is_the_command_lines(group: str, name: str) -> None:
    more = {"greedy": {"granularity": "head"}, "block_influence": {"granularity": "layer"}}.get(name, {})
    if name == "from_run":
        pytest.skip("needs a folder")
    expected = validated(f"{group}={name}", *(f"{key}={value}" for key, value in more.items()))
    found = config(**{group: name, **more})
    for part in PARTS:
        assert asdict(getattr(found, part)) == asdict(getattr(expected, part))


def test_an_option_as_such_stays_as_it_is_and_brings_its_importance() -> None:
    mine = option("optimizer", "ppo")(iterations=3)
    found = compose({"optimizer": mine})
    assert found["optimizer"] is mine
    assert found["importance"].name == "fisher"
    assert compose({"optimizer": mine, "importance": "taylor"})["importance"].name == "taylor"


def test_a_granularity_by_its_kinds() -> None:
    assert granularity_of(["attention"], (0.25, 0)).spared == [0.25, 0]
    assert granularity_of("layer").units == ["layer"]
    with pytest.raises(UsageError, match="granularity: 'heads' is not one of all, channel"):
        granularity_of("heads")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "best"}, "method: 'best' is not one of block_influence,"),
        ({"optimizer": "adam"}, "optimizer: 'adam' is not one of evolution,"),
        (
            {"optimizer": option("optimizer", "policy_gradient")(steps=2.5)},
            "optimizer.steps: 2.5 is not a whole number",
        ),
        ({"optimizer": option("optimizer", "policy_gradient")(steps=0)}, "optimizer.steps: 0 is out of range"),
        ({"budget": Budget(name="rate", keep=1.5)}, "budget.keep: 1.5 is out of range"),
        ({"budget": Budget(name="watts")}, "budget.name: 'watts' is not one of rate"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        config(**given)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_neither_torch_nor_hydra_is_imported() -> None:
    code = "import sys; from policyprune.config import presets; presets.compose({'method': 'ours'}); "
    code += "print([name for name in ('torch', 'hydra', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
