"""Where BOS stands is decided once: other ranks and later evaluations take what the run decided."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from harness import paragraphs, settled, small_run, write_corpus
from policyprune import evaluating, following
from policyprune.config import subjects
from policyprune.config.schema import Evaluating, LanguageModeling
from policyprune.models.adapter import adapt
from policyprune.models.loading import skeleton
from policyprune.pruning.space import space_of
from policyprune.tasks import bos, build


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.txt", paragraphs(80))


def test_another_rank_takes_the_choice_of_rank_0(
    tiny_checkpoint: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settled(*small_run(tiny_checkpoint, corpus))
    assert isinstance(config.task, LanguageModeling)
    assert config.task.bos == "auto"
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    n = space_of(adapt(skeleton(config.model, config.task)), config.granularity.units).n
    for chosen in ("window", "text"):
        protocol = build(dataclasses.replace(config.task, bos=chosen), tokenizer).protocol
        told = following.briefing(n, {**protocol, "bos_measured": {"loss_with_bos": 1.0, "loss_without_bos": 2.0}})
        monkeypatch.setattr(bos, "token_losses", None)  # a rank that decides by itself would fail
        with following.prepared(config, told):
            pass


@pytest.mark.parametrize("chosen", ["window", "text", "none"])
def test_an_evaluation_takes_the_choice_of_the_run(tmp_path: Path, chosen: str) -> None:
    config = settled("task=wikipedia")
    (tmp_path / "checkpoint").mkdir()
    record = {"schema": 1, "status": "finished", "config": dataclasses.asdict(config), "protocol": {"bos": chosen}}
    (tmp_path / "record.json").write_text(json.dumps(record))
    given = subjects.evaluating(str(tmp_path), ["task=c4"])
    assert f"recorded_bos='{chosen}'" in given

    def asked(stated: str, recorded: str | None) -> Any:
        task = dataclasses.replace(config.task, bos=stated)
        rest = {"state": None, "sequence_length": 1, "seed": 0, "force": False}
        own = Evaluating(config.model, task, config.evaluation, recorded_bos=recorded, **rest)
        return evaluating.task_of(own).bos

    assert asked("auto", chosen) == chosen
    assert asked("auto", None) == "auto", "a checkpoint of anyone is measured"
    assert asked("text", "window") == "text", "what a task or a person states wins"
