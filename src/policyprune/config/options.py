"""Where the option files are, and which options there are. Imports neither Hydra nor torch."""

from pathlib import Path

from policyprune.config import registry

PACKAGED = Path(__file__).resolve().parents[1]
CHECKOUT = Path(__file__).resolve().parents[3]


def conf_dir() -> Path:
    """The option files: inside an installed wheel, or beside src/ in a checkout. Never the current directory."""
    return _packaged("conf")


def sweeps_dir() -> Path:
    """The sweeps, in the same place as conf/."""
    return _packaged("sweeps")


def groups() -> list[str]:
    """The config groups, without Hydra's own."""
    folders = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    return sorted((folders | set(registry.OPTIONS)) - {"hydra"})


def options(group: str) -> list[str]:
    """The names that may stand behind `group=`: classes of the registry, and presets in conf/."""
    folder = conf_dir() / group
    files = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")}
    return sorted({*files, *registry.names(group)})


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
