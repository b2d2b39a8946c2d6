"""Which options there are: files in conf/, and classes of optimizers, importances and others, read without torch.

Another package adds its own by entry points of the groups `policyprune.optimizer`, `policyprune.importance` and
`policyprune.tuning` (docs/add-an-optimizer.md).
"""

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from policyprune.errors import UsageError, describe

OPTIMIZERS = "policyprune.pruning.optimizers"
IMPORTANCE = "policyprune.pruning.importance"
TUNING = "policyprune.tuning"
RECOVERY = "policyprune.recovery"
OPTIONS: dict[str, dict[str, str]] = {  # group -> option -> module:class
    "optimizer": {
        "evolution": f"{OPTIMIZERS}.evolution:Evolution",
        "from_run": f"{OPTIMIZERS}.no_search:FromRun",
        "greedy": f"{OPTIMIZERS}.greedy:Greedy",
        "gumbel": f"{OPTIMIZERS}.gumbel:Gumbel",
        "kwon": f"{OPTIMIZERS}.kwon:Kwon",
        "level_evolution": f"{OPTIMIZERS}.levels.level_evolution:LevelEvolution",
        "level_policy_gradient": f"{OPTIMIZERS}.levels.level_policy_gradient:LevelPolicyGradient",
        "level_ppo": f"{OPTIMIZERS}.levels.level_ppo:LevelPPO",
        "levels": f"{OPTIMIZERS}.levels.levels:Levels",
        "one_shot": f"{OPTIMIZERS}.no_search:OneShot",
        "policy_gradient": f"{OPTIMIZERS}.policy_gradient:PolicyGradient",
        "ppo": f"{OPTIMIZERS}.ppo.ppo:PPO",
        "spdy": f"{OPTIMIZERS}.levels.spdy:SPDY",
        "straight_through": f"{OPTIMIZERS}.straight_through:StraightThrough",
    },
    "importance": {
        "block_influence": f"{IMPORTANCE}.activations:BlockInfluence",
        "constant": f"{IMPORTANCE}.data_free:Constant",
        "fisher": f"{IMPORTANCE}.fisher_taylor:Fisher",
        "flap": f"{IMPORTANCE}.activations:Flap",
        "magnitude": f"{IMPORTANCE}.data_free:Magnitude",
        "obs": f"{IMPORTANCE}.second_order:OBS",
        "random": f"{IMPORTANCE}.data_free:Random",
        "taylor": f"{IMPORTANCE}.fisher_taylor:Taylor",
        "wanda_sp": f"{IMPORTANCE}.activations:WandaSp",
    },
    "tuning": {
        "bias_compensation": f"{TUNING}.options:BiasCompensation",
        "cg2": f"{TUNING}.options:CG2",
        "joint": f"{TUNING}.options:Joint",
        "local_pruning": f"{TUNING}.options:LocalPruning",
        "lsmr": f"{TUNING}.options:LSMR",
        "none": f"{TUNING}.options:NoTuning",
        "reconstruct": f"{TUNING}.options:Reconstruct",
    },
    "recovery": {
        "distill": f"{RECOVERY}.options:Distill",
        "finetune": f"{RECOVERY}.options:Finetune",
        "lora": f"{RECOVERY}.options:Lora",
        "none": f"{RECOVERY}.options:NoRecovery",
    },
}
PACKAGED = Path(__file__).resolve().parents[1]
CHECKOUT = Path(__file__).resolve().parents[3]


def names(group: str) -> list[str]:
    """The options of a group that are classes, ours and those of other packages."""
    return sorted({*OPTIONS.get(group, {}), *_foreign(group)})


def option(group: str, name: str) -> Any:
    """The class of an option; UsageError where another package's cannot be imported."""
    if name in OPTIONS[group]:
        module, _, attribute = OPTIONS[group][name].partition(":")
        return getattr(import_module(module), attribute)
    entry = _foreign(group)[name]
    try:
        return entry.load()
    except Exception as error:
        raise UsageError(f"{group}: {name!r}, which another package adds, cannot be read: {describe(error)}") from error


def able(group: str, ability: str) -> list[str]:
    """The options of a group whose class declares an ability, such as `shares_masks`."""
    return [name for name in names(group) if getattr(option(group, name), ability)]


@cache
def _foreign(group: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=f"policyprune.{group}")}


def conf_dir() -> Path:
    """The option files: inside an installed wheel, or beside src/ in a checkout. Never the current directory."""
    return _packaged("conf")


def sweeps_dir() -> Path:
    """The sweeps, in the same place as conf/."""
    return _packaged("sweeps")


def groups() -> list[str]:
    """The config groups, without Hydra's own."""
    folders = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    return sorted((folders | set(OPTIONS)) - {"hydra"})


def options(group: str) -> list[str]:
    """The names that may stand behind `group=`: classes of the registry, and presets in conf/."""
    folder = conf_dir() / group
    files = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")}
    return sorted({*files, *names(group)})


def preset(group: str, name: str) -> bool:
    """Whether an option has a file in conf/."""
    return (conf_dir() / group / f"{name}.yaml").is_file()


def sweeps() -> dict[str, str]:
    """The names that may stand behind `policyprune sweep`, each with the first line of comment in its file."""
    root = sweeps_dir()
    files = {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}
    return {name: _first_comment(path) for name, path in files.items() if not name.startswith("base/")}


def _packaged(folder: str) -> Path:
    return PACKAGED / folder if (PACKAGED / folder).is_dir() else CHECKOUT / folder


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line.lstrip("# ") for line in lines if line.startswith("#") and "@package" not in line]
    return comments[0] if comments else ""
