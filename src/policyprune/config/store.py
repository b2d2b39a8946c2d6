"""Make the schemas and the option files known to Hydra."""

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from policyprune.config.schema import SCHEMAS
from policyprune.config.settle import run_label


def register() -> None:
    """Store every schema under `schema/<group>`, and the resolver that names a run's folder."""
    store = ConfigStore.instance()
    for path, schema in SCHEMAS.items():
        group, _, name = path.rpartition("/")
        package = group or "_global_"
        store.store(group=f"schema/{group}".rstrip("/"), name=name, node=schema, package=package)

    def label(_root_: DictConfig) -> str:
        return run_label(_root_)

    OmegaConf.register_new_resolver("run_label", label, replace=True)
