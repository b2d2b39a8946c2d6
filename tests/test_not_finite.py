"""A model whose loss is not finite: the run ends well, and says so wherever the number would stand."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import POLICY_GRADIENT, SMALL_EVALUATION, SMALL_SEARCH, paragraphs, small_run, validated, write_corpus
from policyprune.commands import run as pipeline
from policyprune.runs.card import card
from policyprune.runs.record import read_record

HERE = ["evaluation.fresh_process=false", "evaluation.one_shot=[global,per_layer]", "export=none", "tracker=none"]


def test_one_that_is_not_finite_loses_no_search(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(model: Any, windows: Any, batch_tokens: int, advance: Any) -> torch.Tensor:
        if len(windows) > 1:  # or it is the rehearsal's
            told.append("")
        losses = (2.5, math.nan, math.inf, math.nan)  # dense, two masks by the metric alone, pruned
        return torch.full((len(windows),), losses[max(0, len(told) - 1)])

    told: list[str] = []
    monkeypatch.setattr("policyprune.evaluation.perplexity.window_losses", broken)
    monkeypatch.setenv("POLICYPRUNE_CACHE", str(tmp_path / "cache"))
    corpus = write_corpus(tmp_path / "stories.txt", paragraphs(150))
    arguments = small_run(
        tiny_checkpoint, corpus, *POLICY_GRADIENT, *SMALL_SEARCH, *SMALL_EVALUATION, *HERE, "optimizer.steps=1"
    )
    pipeline.run(validated(*arguments), tmp_path / "run")
    record = read_record(tmp_path / "run")
    assert record is not None
    assert record.status == "finished"
    values = {row.subject: row.value for row in record.results if row.metric == "perplexity"}
    assert values["dense"] == math.exp(2.5)
    assert [values[subject] for subject in values if subject != "dense"] == [None] * (len(values) - 1)
    assert any(line.startswith("not finite: perplexity of the pruned model") for line in record.warnings)
    shown = capsys.readouterr().out
    for text in (shown, card(record, "a/b", "LlamaForCausalLM", False)):
        assert "not finite" in text
        assert "nan" not in text.lower().split()
    assert all(f"WARNING: {line}" in shown for line in record.warnings)
