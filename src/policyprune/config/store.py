"""Make the schemas, the options and what their interpolations call known to Hydra."""

from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from policyprune.config import registry
from policyprune.config.options import preset
from policyprune.config.schema import (
    Applying,
    Classification,
    Config,
    Evaluating,
    Exporting,
    Finetuning,
    LanguageModeling,
    LatencyBudget,
    Model,
    QuestionAnswering,
    Wandb,
)
from policyprune.config.validate import run_label

VERBS = {"config": Config, "finetune": Finetuning, "evaluate": Evaluating, "export": Exporting, "apply": Applying}
GROUPS: dict[str, dict[str, Any]] = {  # schemas of groups that have several; the others take theirs from the verb's
    "": {"model": Model},
    "task": {
        "language_modeling": LanguageModeling,
        "classification": Classification,
        "question_answering": QuestionAnswering,
    },
    "budget": {"latency": LatencyBudget},
    "tracker": {"wandb": Wandb},
}
OURS = {"importance": "taylor", "optimizer": "straight_through", "tuning": "reconstruct"}


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
