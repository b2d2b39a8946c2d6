"""From overrides to the typed config of a run, and to the points of several runs; what Hydra has to know for that."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from policyprune.config import registry
from policyprune.config.fields import check_added
from policyprune.config.messages import hint
from policyprune.config.registry import conf_dir, groups, options, preset
from policyprune.config.schema import (
    Applying,
    Chat,
    Classification,
    Config,
    Evaluating,
    Exporting,
    Finetuning,
    Generated,
    LanguageModeling,
    LatencyBudget,
    Mixture,
    Model,
    QuestionAnswering,
    Recovering,
    Wandb,
)
from policyprune.config.validate import run_label, validate
from policyprune.errors import UsageError

VERBS = {
    "config": Config,
    "finetune": Finetuning,
    "recover": Recovering,
    "evaluate": Evaluating,
    "export": Exporting,
    "apply": Applying,
}
GROUPS: dict[str, dict[str, Any]] = {  # schemas of groups that have several; the others take theirs from the verb's
    "": {"model": Model},
    "task": {
        "language_modeling": LanguageModeling,
        "chat": Chat,
        "mixture": Mixture,
        "generated": Generated,
        "classification": Classification,
        "question_answering": QuestionAnswering,
    },
    "budget": {"latency": LatencyBudget},
    "tracker": {"wandb": Wandb},
}
OURS = {"importance": "obs", "optimizer": "levels", "tuning": "joint"}
INTERPOLATION = re.compile(r"(\\*)\$\{")
MERGED = ("export",)  # groups of which several options may be given
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")


def register() -> None:
    """Store every schema under `schema/`, every class of the registry as an option of its group, and the resolvers.

    Where conf/ has a file of the same name, that is the option: it sets more than the class, such as another group.
    """
    store = ConfigStore.instance()
    for verb, schema in VERBS.items():
        store.store(group="schema", name=verb, node=schema, package="_global_")
    for group, schemas in GROUPS.items():
        for name, schema in schemas.items():
            store.store(group=f"schema/{group}".rstrip("/"), name=name, node=schema)
    for group in registry.OPTIONS:
        for name in registry.names(group):
            option = registry.option(group, name)
            store.store(group=f"schema/{group}", name=name, node=option)
            if not preset(group, name):
                store.store(group=group, name=name, node=option)

    def label(_root_: DictConfig) -> str:
        return run_label(_root_)

    OmegaConf.register_new_resolver("run_label", label, replace=True)
    OmegaConf.register_new_resolver("recommended", recommended, replace=True)
    OmegaConf.register_new_resolver("for_task", source_for_task, replace=True)


def recommended(*, _root_: DictConfig) -> str | None:
    """The name of the method that `policyprune` runs, None where one of its parts was chosen otherwise."""
    return "ours" if all(_root_[group].name == option for group, option in OURS.items()) else None


def source_for_task(pretrained: str, *, _parent_: DictConfig, _root_: DictConfig) -> str:
    """What the table `fine_tuned` beside it names for the config's task, `pretrained` where it names nothing."""
    table: dict[str, str] = _parent_.get("fine_tuned") or {}
    return table.get(OmegaConf.select(_root_, "task.name"), pretrained)


def literal(value: Any) -> Any:
    """A value for OmegaConf in which no string is interpolated, however deep it stands: `${` is only `${`."""
    if isinstance(value, dict):
        return {key: literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [literal(item) for item in value]
    if isinstance(value, str):
        return INTERPOLATION.sub(lambda match: 2 * match.group(1) + "\\${", value)
    return value


def quoted(text: str) -> str:
    """A string as the right side of an override: one value, whatever is in it."""
    return QuotedString(str(literal(text)), Quote.single).with_quotes()


def key_of(override: str) -> str:
    """The key of an override as it stands on the command line, without its sign."""
    return override.partition("=")[0].lstrip("+~")


def of_hydra(override: str) -> bool:
    """Whether an override sets something of Hydra's own."""
    return key_of(override).startswith(("hydra.", "hydra/"))


def parsed(overrides: Sequence[str]) -> list[Override]:
    """The overrides as Hydra understands them, inside `hydra.initialize...`."""
    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise UsageError(f"{override!r} is not key=value")
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    return list(parser.parse_overrides(list(overrides)))


def product(overrides: Sequence[Override]) -> list[list[str]]:
    """Every combination of the values of some overrides, the last key fastest. A later override replaces its key."""
    axes: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            values = [str(override.get_value_element_as_str())]
        elif override.is_discrete_sweep():
            values = list(override.sweep_string_iterator())
        else:
            raise UsageError(f"{override.input_line}: no list of values, give {key}=a,b,c or {key}=range(1,4)")
        axes[key] = [f"{key}={value}" for value in values]
    return [list(point) for point in itertools.product(*axes.values())]


@dataclass(frozen=True)
class Point:
    """One run: its overrides, its typed config, and the folders that Hydra would use for it, by their keys.

    A folder is None where only the run itself will tell, as with `${hydra:job.num}`.
    """

    overrides: tuple[str, ...]
    config: Any
    folders: dict[str, str | None]


def compose(config_name: str, overrides: Sequence[str], added: Sequence[str] = ()) -> Point:
    """Compose and check one run. UsageError for options that are not there; Hydra's and OmegaConf's errors.

    `added` are those overrides that no user gave.
    """
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        stated = parsed(overrides)
        for override in stated:
            if override.is_sweep_override():
                line = str(override.input_line)
                raise UsageError(f"{line}: several values, give one, or -m for a run of each{hint(line)}")
            if override.input_line not in added:
                _check_options(override)
        config = hydra.compose(config_name, list(overrides), return_hydra_config=True)
        for override in stated:
            if override.key_or_group.startswith("hydra.") and not override.is_delete():
                check_added(config, override.key_or_group)
        folders = {key: _folder(config, key) for key in FOLDERS}
        with open_dict(config):
            del config["hydra"]
        return Point(tuple(overrides), validate(config), folders)


def compose_all(config_name: str, overrides: Sequence[str], added: Sequence[str] = ()) -> list[Point]:
    """Compose and check the runs of a multirun. Those of another sweeper than Hydra's own are known when they begin."""
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        stated = parsed(overrides)
    if any(override.key_or_group.startswith(("hydra/sweeper", "hydra.sweeper")) for override in stated):
        return []
    points = []
    for point in product([override for override in stated if override.key_or_group != "hydra.mode"]):
        try:
            points.append(compose(config_name, point, added))
        except UsageError as error:
            raise UsageError(f"{error} (in the job {' '.join(point)})") from error
    return points


def _folder(config: DictConfig, key: str) -> str | None:
    try:
        value = OmegaConf.select(config, key)
    except OmegaConfBaseException:
        return None
    return "" if value is None else str(value)


def _check_options(override: Override) -> None:
    """UsageError for an option that a group lacks, in the words of the user."""
    group = override.key_or_group
    if not group:
        raise UsageError(f"{override.input_line}: names no key, give key=value")
    if group not in groups() or override.is_delete():
        return
    value: Any = override.value()
    for name in value if group in MERGED and isinstance(value, list) else [value]:
        if name not in options(group):
            raise UsageError(
                f"{group}: {'null' if name is None else repr(name)} is not one of {', '.join(options(group))}"
            )
