"""Where BOS stands is decided once: search, tuning, evaluation, other ranks and later evaluations follow it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from harness import SMALL_EVALUATION, paragraphs, small_run, validated, write_corpus
from policyprune.commands import evaluate as evaluating
from policyprune.commands import run as pipeline
from policyprune.config import targets
from policyprune.config.schema import Evaluating, LanguageModeling
from policyprune.models.adapter import adapt
from policyprune.models.loading import skeleton
from policyprune.models.modelling_file import brings_only_ours
from policyprune.pruning.space import space_of
from policyprune.search import worker
from policyprune.tasks import build, language_modeling
from policyprune.tasks.language_modeling import TextTask


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.txt", paragraphs(80))


def test_everything_that_a_run_looks_at_begins_with_bos_where_it_matters(
    tiny_checkpoint: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    losses = [torch.full((8, 127), 9.0), torch.full((8, 127), 5.0)]  # without BOS and with it
    computed = language_modeling.token_losses
    monkeypatch.setattr(language_modeling, "token_losses", lambda *own: losses.pop(0) if losses else computed(*own))
    first: set[int] = set()
    inputs, windows = TextTask.inputs, TextTask.windows

    def seen(ids: torch.Tensor) -> torch.Tensor:
        first.update(ids[:, 0].tolist())
        return ids

    monkeypatch.setattr(TextTask, "inputs", lambda *own: {"input_ids": seen(inputs(*own)["input_ids"])})
    monkeypatch.setattr(TextTask, "windows", lambda *own: seen(windows(*own)))
    monkeypatch.setenv("POLICYPRUNE_CACHE", str(tmp_path / "cache"))
    quick = ["optimizer=one_shot", "tuning=cg2", "tuning.sequences=8", "export=none", "evaluation.fresh_process=false"]
    record = pipeline.run(validated(*small_run(tiny_checkpoint, corpus, *SMALL_EVALUATION, *quick)), tmp_path / "run")
    assert first == {tokenizer.bos_token_id}
    assert record.protocol["bos"] == "window"
    assert (record.protocol["bos_measured"]["loss_with_bos"], record.status) == (5.0, "finished")
    assert any("5.00 nats (perplexity over 100), absurd for text" in line for line in record.warnings)
    assert any("the dense model's perplexity is" in line for line in record.warnings), "a random model"


def test_another_rank_takes_the_choice_of_rank_0(
    tiny_checkpoint: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = validated(*small_run(tiny_checkpoint, corpus))
    assert isinstance(config.task, LanguageModeling)
    assert config.task.bos == "auto"
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    n = space_of(adapt(skeleton(config.model, config.task)), config.granularity.units).n
    for chosen in ("window", "text"):
        protocol = build(dataclasses.replace(config.task, bos=chosen), tokenizer).protocol
        expected = worker.briefing(n, {**protocol, "bos_measured": {"loss_with_bos": 1.0, "loss_without_bos": 2.0}})
        monkeypatch.setattr(language_modeling, "token_losses", None)  # a rank that decides by itself would fail
        with worker.prepared(config, expected):
            pass


@pytest.mark.parametrize("chosen", ["window", "text", "none"])
def test_an_evaluation_takes_the_choice_of_the_run(tmp_path: Path, chosen: str) -> None:
    config = validated("task=wikipedia")
    (tmp_path / "checkpoint").mkdir()
    record = {"schema": 1, "status": "finished", "config": dataclasses.asdict(config), "protocol": {"bos": chosen}}
    (tmp_path / "record.json").write_text(json.dumps(record))
    given = targets.evaluating(targets.find(str(tmp_path), brings_only_ours), ["task=c4"])
    assert f"recorded_bos='{chosen}'" in given

    def asked(stated: str, recorded: str | None) -> Any:
        task = dataclasses.replace(config.task, bos=stated)
        evaluation = Evaluating(model=config.model, task=task, evaluation=config.evaluation, recorded_bos=recorded)
        return evaluating.task_of(evaluation).bos

    assert asked("auto", chosen) == chosen
    assert asked("auto", None) == "auto", "a checkpoint of anyone is measured"
    assert asked("text", "window") == "text", "what a task or a person states wins"
