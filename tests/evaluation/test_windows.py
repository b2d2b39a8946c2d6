"""Sequences longer than the model's positions are refused before any weight is loaded."""

from pathlib import Path
from typing import Any

import pytest

from harness import SMALL_EVALUATION, paragraphs, small_run, validated, write_corpus
from policyprune.commands import run as pipeline
from policyprune.errors import UsageError
from policyprune.evaluation.windows import check_lengths

CASES = [
    ("evaluation.lengths=[32,129]", r"^evaluation\.lengths: 129 is more than the 128 positions"),
    ("evaluation.latency.length=200", r"^evaluation\.latency\.length: 200 is more than the 128 positions"),
    ("task.calibration.length=129", r"^task\.calibration\.length: 129 is more than the 128 positions"),
]


@pytest.mark.parametrize(("override", "reason"), CASES)
def test_what_is_too_long_is_refused_before_weights_are_loaded(
    override: str, reason: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_corpus(tmp_path / "a.txt", paragraphs(20))
    config = validated(*small_run(tiny_checkpoint, corpus, *SMALL_EVALUATION, override))
    monkeypatch.setattr(pipeline, "load", None)
    with pytest.raises(UsageError, match=reason):
        pipeline.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_not_measured_may_be_long(tiny_llama: Any) -> None:
    model = tiny_llama()
    timed = validated("task=glue/sst2", "evaluation.latency.length=200", "evaluation.latency.repeats=0")
    check_lengths(timed.evaluation, timed.task, model)
    encoder = validated("task=glue/sst2", "evaluation.lengths=[500]", "evaluation.latency.length=128")
    check_lengths(encoder.evaluation, encoder.task, model)  # no perplexity of labelled examples
    longest = validated("task=wikipedia", "task.calibration.length=128", "evaluation.lengths=[128]")
    check_lengths(longest.evaluation, longest.task, model)
