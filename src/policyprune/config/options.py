"""Where the option files are, and which there are. Imports neither Hydra nor torch."""

from pathlib import Path

PACKAGED = Path(__file__).resolve().parents[1] / "conf"
CHECKOUT = Path(__file__).resolve().parents[3] / "conf"


def conf_dir() -> Path:
    """The option files: inside an installed wheel, or beside src/ in a checkout. Never the current directory."""
    return PACKAGED if PACKAGED.is_dir() else CHECKOUT


def groups() -> list[str]:
    """The config groups, without the shared defaults that options build on."""
    return sorted(path.name for path in conf_dir().iterdir() if path.is_dir() and path.name != "base")


def options(group: str) -> list[str]:
    """The names that may stand behind `group=`."""
    folder = conf_dir() / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
