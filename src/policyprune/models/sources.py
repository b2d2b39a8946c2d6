"""What a source string stands for: a hub id, a local path, or `pkg://package/path` inside an installed package."""

import importlib.util
from pathlib import Path

from policyprune.config.schema import Config, Evaluating, Finetuning, Given, Labelled, LanguageModeling
from policyprune.errors import UsageError

PACKAGE = "pkg://"


def locate(key: str, source: str) -> Path | None:
    """Return the file or directory that `source` names on this disk, None for a hub id.

    `key` is the config key that errors name. A package's files are found without importing it.
    """
    if not source.startswith(PACKAGE):
        path = Path(source).expanduser()
        if path.exists():
            return path
        if source.startswith(("/", ".", "~")):
            raise UsageError(f"{key}: {source!r} does not exist")
        return None
    package, _, inside = source.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"{key}: {source!r} needs the package {package!r}, install it (`make setup` does)")
    path = Path(spec.submodule_search_locations[0]) / inside
    if not path.exists():
        raise UsageError(f"{key}: {source!r} names no file of the package {package!r}")
    return path


def check_source(source: str) -> None:
    """UsageError for a model source that is empty, or a file or package that this machine lacks."""
    if not source:
        raise UsageError("model.source: empty, give a hub id, a directory, a .gguf file or pkg://package/path")
    locate("model.source", source)


def check_sources(config: Config | Finetuning | Evaluating) -> None:
    """UsageError for a file, directory or package that the config names and this machine lacks. Needs no torch."""
    check_source(config.model.source)
    task = config.task
    if isinstance(task, LanguageModeling):
        named = [("task.files", name) for name in task.files or []]
        named += [("task.test_files", name) for name in task.test_files or []]
    else:
        files = task.data_files if isinstance(task, Labelled) else {}
        named = [(f"task.data_files.{split}", name) for split, name in files.items()]
        if isinstance(task, Labelled) and task.origin == "embedded":
            named += [(f"task.offline_files.{split}", name) for split, name in task.offline_files.items()]
    if isinstance(config, Config) and isinstance(config.optimizer, Given):
        named.append(("optimizer.folder", f"{config.optimizer.folder}/mask.safetensors"))
    for key, name in named:
        if locate(key, name) is None:
            raise UsageError(f"{key}: {name!r} does not exist")
