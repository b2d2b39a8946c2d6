"""Runs on several kinds of text through the console command, on a tiny random model with a chat template."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from forking import forked
from harness import SMALL_EVALUATION, SMALL_TASK, foreign_lines, paragraphs, write_corpus
from policyprune.runs.record import Record, read_record

QUICK = ["optimizer=one_shot", "importance=magnitude", "tuning=cg2", "tuning.sequences=16", "budget.keep=0.6"]
MEASURED = [*SMALL_EVALUATION, "evaluation.fresh_process=false", "evaluation.latency.repeats=0"]
TRAINED = ["recovery=finetune", "recovery.steps=8", "recovery.length=16", "recovery.held_out=16"]
TEMPLATE = "{% for message in messages %}{{ '[' + message.role + '] ' + message.content + eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny-chat"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "stories.txt", paragraphs(150))


def record_of(folder: Path) -> Record:
    record = read_record(folder)
    assert record is not None
    return record


def perplexities(record: Record) -> dict[str, float]:
    return {row.subject: row.value for row in record.results if row.metric == "perplexity" and row.value}


def done(*arguments: str, cwd: Path) -> str:
    ended = forked(*arguments, cwd=cwd)
    assert ended.returncode == 0, ended.stderr
    assert foreign_lines(ended.stderr) == []
    return str(ended.stdout)


def test_a_mixture_is_pruned_on_recovered_on_and_evaluated(model: Path, corpus: Path, tmp_path: Path) -> None:
    texts = paragraphs(120, seed=1)
    rows: list[Any] = [{"messages": [{"role": "user", "content": text}]} for text in texts]
    chats = tmp_path / "chats.jsonl"
    chats.write_text("\n".join(map(json.dumps, rows)))
    parts = [f"task.parts=[{corpus},chat:{chats}]", "task.weights=[2,1]"]
    common = [f"model.source={model}", "model.name=tiny", *SMALL_TASK, *MEASURED]
    done("task=mixture", *parts, *common, *QUICK, *TRAINED, "hydra.run.dir=run", cwd=tmp_path)
    record = record_of(tmp_path / "run")
    assert [part["sequences"] for part in record.protocol["parts"]] == [32, 16]
    assert record.recovery["task"] == "stories, chats"
    assert set(perplexities(record)) >= {"dense", "pruned", "recovered"}
    done("evaluate", "run", "hydra.run.dir=again", cwd=tmp_path)
    again = perplexities(record_of(tmp_path / "again"))["evaluated"]
    assert again == pytest.approx(perplexities(record)["recovered"], rel=1e-3)


def test_the_dense_model_writes_once_for_a_run_and_its_recovery(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLICYPRUNE_CACHE", str(tmp_path / "cache"))
    common = [f"model.source={model}", "model.name=tiny", *SMALL_TASK, *MEASURED]
    task = ["task=generated", f"task.test_task={corpus}", "task.length=24", "task.tokens=2000"]
    done(*task, *common, *QUICK, "hydra.run.dir=run", cwd=tmp_path)
    record = record_of(tmp_path / "run")
    assert record.protocol["test_of"] == "stories"
    done("evaluate", "run", "hydra.run.dir=again", cwd=tmp_path)
    again = perplexities(record_of(tmp_path / "again"))["evaluated"]
    assert again == pytest.approx(perplexities(record)["tuned"], rel=1e-3)
    few = [*TRAINED[1:], "recovery.dtype=float32"]
    done("recover", "run", "recovery=finetune", *few, "hydra.run.dir=recovered", cwd=tmp_path)
    recovered = record_of(tmp_path / "recovered")
    assert recovered.recovery["task"] == "generated"
    assert recovered.protocol["written"] == record.protocol["written"]
    assert [path.name for path in (tmp_path / "cache/generated").iterdir()] == [f"{record.protocol['written']}.jsonl"]
