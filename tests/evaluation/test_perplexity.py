"""Perplexity and the loss of each token against a plain computation; windows that are too long for the model."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import SMALL_EVALUATION, paragraphs, small_run, validated, write_corpus
from policyprune.commands import run as pipeline
from policyprune.errors import UsageError
from policyprune.evaluation.fresh_process import perplexity_elsewhere
from policyprune.evaluation.perplexity import (
    TextQuality,
    check_lengths,
    measure_perplexity,
    perplexity,
    perplexity_of_losses,
    window_losses,
)
from policyprune.models import sequences

MakeLlama = Callable[..., Any]


@pytest.fixture
def windows() -> Tensor:
    return torch.randint(0, 300, (7, 24), generator=torch.Generator().manual_seed(1))


def naive_losses(model: Any, windows: Tensor) -> Tensor:
    """Loss of each predicted token, one window at a time, from the whole logits in float64: (N, L - 1)."""
    losses = []
    for row in windows:
        logits = model(input_ids=row[None]).logits[0].double()
        for position in range(len(row) - 1):
            losses.append(-torch.log_softmax(logits[position], -1)[row[position + 1]])
    return torch.stack(losses).view(len(windows), -1)


def test_perplexity_is_that_of_a_plain_computation(tiny_llama: MakeLlama, windows: Tensor) -> None:
    model = tiny_llama()
    expected = math.exp(naive_losses(model, windows).mean())
    assert perplexity(model, windows, batch_tokens=48) == pytest.approx(expected, rel=1e-5)
    assert abs(expected - 300) > 1, "the model does not differ from a uniform one, so this proves nothing"


def test_a_measured_perplexity_says_how_it_was_measured(tiny_llama: MakeLlama, windows: Tensor) -> None:
    model = tiny_llama()
    measure = measure_perplexity(model, windows)
    assert measure.value == perplexity(model, windows)
    assert measure.protocol == {"length": 24, "windows": 7, "dtype": "float32"}
    assert measure.stderr == perplexity_of_losses(window_losses(model, windows))[1]


def test_token_losses_are_those_of_a_plain_computation(tiny_llama: MakeLlama, windows: Tensor) -> None:
    model = tiny_llama()
    losses = sequences.token_losses(model, windows)
    assert losses.shape == (7, 23)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), naive_losses(model, windows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("elements", [1, 300, 3100, 1 << 26])
def test_chunks_do_not_change_the_losses(
    tiny_llama: MakeLlama, windows: Tensor, monkeypatch: pytest.MonkeyPatch, elements: int
) -> None:
    model = tiny_llama()
    whole = sequences.token_losses(model, windows)
    monkeypatch.setattr(sequences, "CHUNK_ELEMENTS", elements)
    torch.testing.assert_close(sequences.token_losses(model, windows), whole, rtol=1e-6, atol=1e-6)


def test_chunks_bound_the_logits_that_are_held(
    tiny_llama: MakeLlama, windows: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sizes = tiny_llama(), []
    model.lm_head.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
    monkeypatch.setattr(sequences, "CHUNK_ELEMENTS", 3100)
    sequences.token_losses(model, windows)
    assert max(sizes) <= 3100
    assert sum(sizes) == 7 * 23 * 300


@pytest.mark.parametrize("batch_tokens", [1, 24, 50, 10_000])
def test_batches_do_not_change_perplexity(tiny_llama: MakeLlama, windows: Tensor, batch_tokens: int) -> None:
    model = tiny_llama()
    assert perplexity(model, windows, batch_tokens) == pytest.approx(perplexity(model, windows, 72), rel=1e-5)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(
    tiny_llama: MakeLlama, windows: Tensor
) -> None:
    model = tiny_llama()
    model.lm_head.weight.zero_()
    assert perplexity(model, windows, 100) == pytest.approx(300, rel=1e-6)


def test_progress_counts_every_window_once(tiny_llama: MakeLlama, windows: Tensor) -> None:
    done: list[int] = []
    window_losses(tiny_llama(), windows, batch_tokens=48, advance=done.append)
    assert done == [2, 2, 2, 1]


def test_a_loss_that_is_not_a_number_is_none_as_perplexity(tiny_llama: MakeLlama, windows: Tensor) -> None:
    model = tiny_llama()
    model.lm_head.weight[5, 0] = torch.nan
    assert math.isnan(perplexity(model, windows, 100))


def test_one_bad_window_is_not_dropped(tiny_llama: MakeLlama, windows: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    def losses(model: Any, ids: Tensor) -> Tensor:
        good = torch.ones(ids.shape[0], ids.shape[1] - 1)
        return torch.where((ids[:, :1] == windows[3, 0]), torch.nan, good)

    monkeypatch.setattr("policyprune.evaluation.perplexity.token_losses", losses)
    assert math.isnan(perplexity(tiny_llama(), windows, batch_tokens=24))


def test_a_huge_loss_is_infinite_perplexity(
    tiny_llama: MakeLlama, windows: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "policyprune.evaluation.perplexity.token_losses",
        lambda model, ids: torch.full((ids.shape[0], ids.shape[1] - 1), 800.0),
    )
    assert perplexity(tiny_llama(), windows, 100) == math.inf


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_not_finite_is_measured_as_null(
    broken: float, tiny_llama: MakeLlama, windows: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every model, whoever made it: a finished search is not lost to it."""
    losses = torch.tensor([3.0, broken])
    monkeypatch.setattr("policyprune.evaluation.perplexity.window_losses", lambda *arguments: losses)
    rows = TextQuality(windows={24: windows}, options=validated().evaluation).of("pruned", tiny_llama())
    assert [(row.metric, row.value, row.stderr) for row in rows] == [("perplexity", None, None)]


def test_a_fresh_process_gives_null_for_what_is_not_finite(
    tiny_llama: MakeLlama, windows: Tensor, tmp_path: Path
) -> None:
    model = tiny_llama()
    model.lm_head.weight[5, 0] = torch.nan
    model.save_pretrained(tmp_path)
    assert perplexity_elsewhere(tmp_path, {24: windows}, model, 100) == {24: None}


def test_a_folder_without_a_model_is_an_error_with_its_cause(tmp_path: Path, windows: Tensor, tiny_llama: Any) -> None:
    with pytest.raises(RuntimeError, match="does not load in a fresh process: ") as error:
        perplexity_elsewhere(tmp_path, {24: windows}, tiny_llama(), 100)
    assert str(tmp_path) in str(error.value)


def test_the_standard_error_is_that_of_the_windows_mean_losses() -> None:
    """By drawing windows anew: the deviation of the perplexity over draws is its standard error."""
    chance = torch.Generator().manual_seed(0)
    draws = [perplexity_of_losses(3 + 0.4 * torch.randn(64, generator=chance, dtype=torch.float64)) for _ in range(400)]
    values = torch.tensor([value for value, _ in draws])
    errors = [error for _, error in draws if error is not None]
    assert sum(errors) / 400 == pytest.approx(float(values.std()), rel=0.1)
    assert float(values.mean()) == pytest.approx(math.exp(3), rel=0.01)


@pytest.mark.parametrize("losses", [[3.0], [800.0, 801.0], [1.0, math.nan]])
def test_no_standard_error_of_one_window_or_of_what_is_not_finite(losses: list[float]) -> None:
    assert perplexity_of_losses(torch.tensor(losses))[1] is None


TOO_LONG = [
    ("evaluation.lengths=[32,129]", r"^evaluation\.lengths: 129 is more than the 128 positions"),
    ("evaluation.latency.length=200", r"^evaluation\.latency\.length: 200 is more than the 128 positions"),
    ("task.calibration.length=129", r"^task\.calibration\.length: 129 is more than the 128 positions"),
]


@pytest.mark.parametrize(("override", "reason"), TOO_LONG)
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
