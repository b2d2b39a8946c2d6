"""Make the schemas, the option files and what their interpolations call known to Hydra."""

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from policyprune.config.schema import SCHEMAS
from policyprune.config.validate import run_label


def register() -> None:
    """Store every schema under `schema/<group>`, and the resolvers: a run's folder, a task's model."""
    store = ConfigStore.instance()
    for path, schema in SCHEMAS.items():
        group, _, name = path.rpartition("/")
        package = group or "_global_"
        store.store(group=f"schema/{group}".rstrip("/"), name=name, node=schema, package=package)

    def label(_root_: DictConfig) -> str:
        return run_label(_root_)

    OmegaConf.register_new_resolver("run_label", label, replace=True)
    OmegaConf.register_new_resolver("for_task", source_for_task, replace=True)


def source_for_task(pretrained: str, *, _parent_: DictConfig, _root_: DictConfig) -> str:
    """What the table `fine_tuned` beside it names for the config's task, `pretrained` where it names nothing."""
    table: dict[str, str] = _parent_.get("fine_tuned") or {}
    return table.get(OmegaConf.select(_root_, "task.name"), pretrained)
