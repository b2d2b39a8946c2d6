"""Perplexity and the loss of each token against a plain computation."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import validated
from policyprune.evaluation.fresh_process import perplexity_elsewhere
from policyprune.evaluation.perplexity import of_losses, perplexity, window_losses
from policyprune.evaluation.quality import Predicting
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
    monkeypatch.setattr("policyprune.evaluation.quality.window_losses", lambda *arguments: losses)
    rows = Predicting({24: windows}, validated().evaluation, None).of("pruned", tiny_llama())
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
    draws = [of_losses(3 + 0.4 * torch.randn(64, generator=chance, dtype=torch.float64)) for _ in range(400)]
    values = torch.tensor([value for value, _ in draws])
    errors = [error for _, error in draws if error is not None]
    assert sum(errors) / 400 == pytest.approx(float(values.std()), rel=0.1)
    assert float(values.mean()) == pytest.approx(math.exp(3), rel=0.01)


@pytest.mark.parametrize("losses", [[3.0], [800.0, 801.0], [1.0, math.nan]])
def test_no_standard_error_of_one_window_or_of_what_is_not_finite(losses: list[float]) -> None:
    assert of_losses(torch.tensor(losses))[1] is None
