"""Options by their names in conf/, without Hydra: for Python, as the command line composes them. No torch here."""

from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import cache
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from policyprune.config.combinations import check_task
from policyprune.config.fields import check, wrong_type
from policyprune.config.option_files import read_class, read_option
from policyprune.config.registry import OPTIONS, conf_dir, option, options
from policyprune.config.schema import (
    Budget,
    Config,
    Evaluation,
    Export,
    Granularity,
    Importance,
    LatencyBudget,
    Model,
    Optimizer,
    Recovery,
    Task,
    Text,
    Tracker,
    Trained,
    Tuning,
)
from policyprune.config.texts import check_shares
from policyprune.config.validate import validate
from policyprune.errors import UsageError

ORDER = ("method", "optimizer", "granularity", "budget")  # options of these choose options of others, the first wins
PARTS = ("granularity", "budget", "importance", "optimizer", "tuning", "recovery")
CLASSES: dict[str, type] = {
    "granularity": Granularity,
    "budget": Budget,
    "importance": Importance,
    "optimizer": Optimizer,
    "tuning": Tuning,
    "recovery": Recovery,
}


def compose(given: dict[str, Any]) -> dict[str, Any]:
    """The parts of a pruning by group, as `policyprune group=name ...` composes them.

    `given` has the names of options, or options themselves, for some of the groups; the method is a group, too. The
    options of the other groups are those that a method, an optimizer or a granularity asks for, or the defaults.
    UsageError for a name that a group lacks.
    """
    chosen = {group: value for group, value in given.items() if value is not None}
    for group, value in chosen.items():
        if not isinstance(value, (str, CLASSES[group]) if group in CLASSES else str):
            raise UsageError(
                f"{group}: {value!r} is neither a name, one of {', '.join(options(group))}, nor its options"
            )
    sets: dict[str, dict[str, Any]] = {}
    for group in ORDER:
        choice = chosen.get(group, _defaults().get(group))
        if choice is None:
            continue
        preset = read_option(group, choice) if isinstance(choice, str) else read_class(group, choice.name)
        for other, name in preset.chooses.items():
            chosen.setdefault(other, name)
        for other, values in preset.sets.items():
            sets[other] = {**values, **sets.get(other, {})}
    return {group: _made(group, chosen.get(group, _defaults()[group]), sets.get(group, {})) for group in PARTS}


def granularity_of(units: str | Sequence[str] | Granularity, spared: Sequence[float] = (0.0, 0.0)) -> Granularity:
    """A granularity by its name, by its kinds of units, or as it is. UsageError for a name that there is not."""
    if isinstance(units, Granularity):
        return units
    if not isinstance(spared, Sequence) or len(spared) != 2 or not all(isinstance(own, int | float) for own in spared):
        raise UsageError(
            f"granularity.spared: {spared!r} is not two shares, of the first and of the last layers, such as (0.1, 0.1)"
        )
    if isinstance(units, str):
        made: Granularity = _made("granularity", units, {"spared": list(spared)})
    else:
        made = Granularity(units=list(units), spared=list(spared))
    for setting in fields(made):
        check(f"granularity.{setting.name}", getattr(made, setting.name), setting.metadata)
    if not made.units:
        raise UsageError("granularity.units: empty, name one or more, such as ['attention', 'ffn']")
    return made


def recovery_of(recovery: str | Recovery) -> Trained:
    """A recovery by its name, or as it is. UsageError for a wrong value, and for one that trains nothing."""
    options = compose({"recovery": recovery})["recovery"]
    _typed(options, "recovery.")
    for setting in fields(options):
        check(f"recovery.{setting.name}", getattr(options, setting.name), setting.metadata)
    options.check()
    if not isinstance(options, Trained):
        raise UsageError(f"recovery: {options.name!r} does nothing, use distill, finetune or lora")
    if options.task is not None:
        raise UsageError(f"recovery.task: {options.task!r}, but what is trained on is given as data; use null")
    return options


def text_of(task: Text, seed: int) -> Text:
    """A text task as the command line checks it, with the seed where it has none of its own."""
    _typed(task, "task.")
    for owner, prefix in ((task, "task."), (task.calibration, "task.calibration.")):
        for setting in fields(owner):
            if not is_dataclass(value := getattr(owner, setting.name)):
                check(f"{prefix}{setting.name}", value, setting.metadata)
    check_task(task)
    check_shares(task)
    own = task.calibration.seed
    return replace(task, calibration=replace(task.calibration, seed=seed if own is None else own))


def configured(parts: dict[str, Any], source: str, task: Task, method: str | None, seed: int) -> Config:
    """The config of a pruning in memory: nothing is written or measured. UsageError as on the command line.

    `source` is what the model is called. Without a method, `ours` is named where it is what the parts amount to.
    """
    ours = read_option("method", "ours").chooses
    if method is None and all(parts[group].name == name for group, name in ours.items()):
        method = "ours"
    return checked(
        Config(
            model=Model(name=source.rstrip("/").rpartition("/")[2], source=source),
            task=task,
            evaluation=Evaluation(name="none", lengths=[], one_shot=[], fresh_process=False),
            export=Export(name="none"),
            tracker=Tracker(name="none"),
            method=method,
            seed=seed,
            **parts,
        )
    )


def checked(config: Config) -> Config:
    """A config that was put together in Python, after the checks of the command line, which raise UsageError."""
    for group in fields(config):
        part = getattr(config, group.name)
        if is_dataclass(part):
            _typed(part, f"{group.name}.")
    result = validate(_typed(config, ""))
    assert isinstance(result, Config)
    return result


def _typed(part: Any, prefix: str) -> DictConfig:
    """Options as OmegaConf types them; UsageError names the key, the value and the type."""
    try:
        typed: DictConfig = OmegaConf.structured(part)
        return typed
    except OmegaConfBaseException as error:
        raise UsageError(f"{prefix}{error.full_key}: {wrong_type(error, vars(part).get(error.full_key))}") from error


@cache
def _defaults() -> dict[str, str]:
    """The option of each group that conf/config.yaml names."""
    content = yaml.safe_load((conf_dir() / "config.yaml").read_text(encoding="utf-8"))
    return {group: name for entry in content["defaults"] if isinstance(entry, dict) for group, name in entry.items()}


def _made(group: str, choice: Any, sets: dict[str, Any]) -> Any:
    """An option by its name, with what others set; one that was given as such stays as it is.

    UsageError where a method spares layers and a granularity that was given does not.
    """
    if isinstance(choice, Granularity):
        if list(choice.spared) != sets.get("spared", list(choice.spared)):
            raise UsageError(
                f"granularity.spared: {list(choice.spared)}, but the method spares {sets['spared']} of the layers; say "
                "the same, or nothing of the granularity"
            )
        return replace(choice, align=choice.align or sets.get("align"))
    if not isinstance(choice, str):
        return choice
    preset = read_option(group, choice)
    values = {**preset.values, **sets}
    if group in OPTIONS:
        kind = option(group, preset.kind)
        missing = [
            setting.name
            for setting in fields(kind)
            if setting.default is MISSING and setting.default_factory is MISSING and setting.name not in values
        ]
        if missing:
            raise UsageError(f"{group}: {choice!r} needs its {missing[0]}, give pp.{kind.__name__}({missing[0]}=...)")
        return kind(**values)
    if group == "granularity":
        return Granularity(**values)
    return LatencyBudget(**values) if preset.kind == "latency" else Budget(**{"name": preset.kind, **values})
