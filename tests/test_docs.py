"""The examples of the pages run."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra
import pytest
import torch

from harness import (
    SMALL_EVALUATION,
    SMALL_TASK,
    clean_environment,
    console,
    paragraphs,
    small_run,
    validated,
    write_corpus,
)
from policyprune.commands import run as pipeline
from policyprune.config.composition import register
from policyprune.config.registry import conf_dir
from policyprune.config.validate import validate
from policyprune.evaluation.quality import QUALITIES
from policyprune.models.families import FAMILIES
from policyprune.runs.record import read_record
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


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The package that docs/add-an-optimizer.md writes, as it lies in site-packages."""
    folder = tmp_path / "site"
    metadata = folder / "mine-1.0.dist-info"
    metadata.mkdir(parents=True)
    for block in blocks_of("add-an-optimizer.md", "python"):
        name = block.partition("\n")[0].removeprefix("# ")
        (folder / name).write_text(block, encoding="utf-8")
    (entries,) = blocks_of("add-an-optimizer.md", "toml")
    entries = re.sub(r'\[project\.entry-points\."(.*)"\]', r"[\1]", entries).replace('"', "")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(entries, encoding="utf-8")
    return folder


def test_the_example_of_add_an_optimizer_runs(package: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The page's classes are options of the command, which searches, scores and tunes with them."""
    corpus = write_corpus(tmp_path / "stories.txt", paragraphs(150))
    (command,) = blocks_of("add-an-optimizer.md", "bash")
    small = [f"model.source={tiny_checkpoint}", "model.name=tiny", "task=text", f"task.files=[{corpus}]"]
    arguments = [*command.split()[1:], *small, *SMALL_TASK, *SMALL_EVALUATION, "evaluation.fresh_process=false"]
    environment = {"PYTHONPATH": str(package)}
    done = console(*arguments, "hydra.run.dir=run", cwd=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    record = read_record(tmp_path / "run")
    assert record is not None
    assert [record.config[group]["name"] for group in ("optimizer", "importance", "tuning")] == [
        "hill_climbing",
        "weight_mean",
        "gain",
    ]
    assert record.search["forwards"] == 10
    assert {row["outcome"] for row in record.tuning} == {"scaled"}
    assert {"dense", "pruned", "tuned"} <= {row.subject for row in record.results}


def test_options_of_another_package_are_options_like_any_other(package: Path, tmp_path: Path) -> None:
    def called(*arguments: str) -> subprocess.CompletedProcess[str]:
        return console(*arguments, cwd=tmp_path, environment={"PYTHONPATH": str(package)})

    assert "hill_climbing, kwon" in called("--help").stdout
    assert "noise: 0.1" in called("optimizer=hill_climbing", "--cfg", "job").stdout
    for override, words in (
        ("optimizer.noise=0", "optimizer.noise: 0.0 is out of range, it must be above 0"),
        ("optimizer.nope=1", "optimizer.nope: unknown key, the choices are name, steps, batch_size, noise, sliced"),
        ("optimizer.steps=many", "optimizer.steps: "),
        ("granularity=hidden importance=weight_mean", "importance: weight_mean is for heads and channels of layers"),
    ):
        done = called("optimizer=hill_climbing", *override.split())
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(f"policyprune: {words}")


def test_an_option_that_cannot_be_read_is_told_in_one_line(package: Path, tmp_path: Path) -> None:
    (package / "gain.py").write_text("import nothing_of_this_name", encoding="utf-8")
    done = console("seed=1", cwd=tmp_path, environment={"PYTHONPATH": str(package)})
    assert done.returncode == 2
    assert done.stderr.startswith("policyprune: tuning: 'gain', which another package adds, cannot be read: ")
    assert done.stderr.count("\n") == 1


def test_the_page_of_options_is_current() -> None:
    script = [sys.executable, str(DOCS / "options.py"), "--check"]
    assert subprocess.run(script, env=clean_environment(), check=False).returncode == 0, "run python docs/options.py"
