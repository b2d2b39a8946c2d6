"""The examples of the pages run."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra
import pytest
import torch

from harness import SMALL_EVALUATION, paragraphs, small_run, validated
from policyprune.commands import run as pipeline
from policyprune.config.options import conf_dir
from policyprune.config.store import register
from policyprune.config.validate import validate
from policyprune.evaluation.quality import QUALITIES
from policyprune.models.families import FAMILIES
from policyprune.tasks import TASKS

DOCS = Path(__file__).parents[1] / "docs"


def blocks_of(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_example_of_add_a_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's blocks, one after the other, in one namespace: the table, and the check."""
    blocks = blocks_of("add-a-model.md", "python")
    assert len(blocks) == 2
    monkeypatch.setattr("policyprune.models.families.FAMILIES", dict(FAMILIES))
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(block, namespace)
    gaps = namespace["gaps"]
    assert set(gaps) == {"masked = shrunk", "pruned again", "cache", "bfloat16"}
    assert all(value <= (5e-2 if column == "bfloat16" else 1e-4) for column, value in gaps.items())
    assert namespace["GPTJ"].model_types[0] not in FAMILIES


def test_the_corpus_of_add_a_task_is_an_option(tmp_path: Path) -> None:
    (block,) = blocks_of("add-a-task.md", "yaml")
    shutil.copytree(conf_dir(), tmp_path / "conf")
    (tmp_path / "conf/task/my_corpus.yaml").write_text(block, encoding="utf-8")
    register()
    with hydra.initialize_config_dir(str(tmp_path / "conf"), version_base="1.3"):
        task = validate(hydra.compose("config", ["task=my_corpus"])).task
    assert (task.name, task.source, task.test_split) == ("my_corpus", "my-org/my-dataset", "validation")
    assert task == replace(validated("task=wikitext2").task, **{name: getattr(task, name) for name in CHANGED})


CHANGED = ("name", "source", "subset", "test_split", "bos")


def test_the_kind_of_task_of_add_a_task_runs(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """The page's blocks as one module, and a whole run on the task that it makes."""
    blocks = blocks_of("add-a-task.md", "python")
    assert len(blocks) == 3
    monkeypatch.setattr("policyprune.tasks.TASKS", dict(TASKS))
    monkeypatch.setattr("policyprune.evaluation.quality.QUALITIES", dict(QUALITIES))
    module: Any = ModuleType("completion")
    monkeypatch.setitem(sys.modules, "completion", module)
    for block in blocks:
        exec(block, module.__dict__)
    rows = [{"prompt": text[:30], "answer": text[30:50]} for text in paragraphs(40)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    task = module.build(module.Completion(file=str(file)), tiny_tokenizer)
    model = tiny_llama()
    prompt, answer = (tiny_tokenizer(rows[3][part])["input_ids"] for part in ("prompt", "answer"))
    scores = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    expected = -scores.gather(1, torch.tensor(answer)[:, None]).mean()
    torch.testing.assert_close(task.loss(model, torch.tensor([0, 3, 5]))[1], expected, rtol=1e-4, atol=1e-4)

    options = ["optimizer=one_shot", "evaluation.fresh_process=true", *SMALL_EVALUATION]
    config = validated(*small_run(tiny_checkpoint, file, *options))
    record = pipeline.run(replace(config, task=module.Completion(file=str(file))), tmp_path / "run")
    losses = {row.subject: row.value for row in record.results if row.metric == "answer_loss"}
    assert losses.keys() >= {"dense", "pruned"}
    assert all(value is not None and 0 < value < 10 for value in losses.values())
    assert record.calibration["importance"]["sequences"] == 16
    assert module.Completion not in TASKS
