"""Where the BOS token stands: measured where `task.bos=auto` leaves it open, and the same in all data of a run."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import paragraphs, write_corpus
from policyprune.config.schema import LanguageModeling
from policyprune.tasks import bos, build
from policyprune.tasks.language_modeling import TextTask

MakeTask = Callable[..., LanguageModeling]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.txt", paragraphs(80))


def with_gain(gain: float) -> Callable[[Any, Tensor], Tensor]:
    """Losses of a model that needs BOS (token 0) in front: 2 nats with it, `gain` more without."""

    def losses(model: Any, ids: Tensor) -> Tensor:
        loss = torch.where(ids[:, :1] == 0, 2.0, 2.0 + gain)
        return loss.expand(-1, ids.shape[1] - 1)

    return losses


@pytest.mark.parametrize(
    ("gain", "chosen"), [(2.0, "window"), (0.11, "window"), (0.09, "text"), (-1.0, "text"), (torch.nan, "window")]
)
def test_bos_stands_in_front_where_it_matters(
    monkeypatch: pytest.MonkeyPatch, tiny_llama: Any, gain: float, chosen: str
) -> None:
    monkeypatch.setattr(bos, "token_losses", with_gain(gain))
    found, measured = bos.decide(tiny_llama(), 0, torch.arange(1, 4000))
    assert found == chosen
    assert measured["tokens"] == 8 * 126, "8 windows of 128 tokens, of which BOS and the first are not compared"
    assert measured["loss_with_bos"] == pytest.approx(2.0)


@pytest.mark.parametrize("tokens", [2, 50, 127, 300])
def test_both_losses_are_of_the_same_tokens(tiny_llama: Any, tokens: int) -> None:
    model, ids = tiny_llama(), torch.randint(3, 200, (tokens,))
    _, measured = bos.decide(model, 0, ids)
    width = min(127, tokens)
    rows = ids[: tokens // width * width].view(-1, width)
    plain, led = rows, torch.cat([torch.zeros(len(rows), 1, dtype=torch.long), rows], dim=1)
    expected = []
    for own, skipped in ((plain, 1), (led, 2)):
        scores = model(own).logits[:, :-1].double().log_softmax(-1)
        expected.append(-scores.gather(-1, own[:, 1:, None])[:, skipped - 1 :].mean())
    assert measured["loss_without_bos"] == pytest.approx(float(expected[0]), rel=1e-5)
    assert measured["loss_with_bos"] == pytest.approx(float(expected[1]), rel=1e-5)
    assert measured["tokens"] == len(rows) * (width - 1)


def test_windows_fit_into_the_positions_of_the_model(tiny_llama: Any) -> None:
    _, measured = bos.decide(tiny_llama(max_position_embeddings=32), 0, torch.arange(1, 290))
    assert measured["tokens"] == 8 * 30


@pytest.mark.parametrize(("gain", "chosen"), [(1.0, "window"), (0.0, "text")])
def test_auto_is_the_protocol_that_was_chosen(
    monkeypatch: pytest.MonkeyPatch,
    corpus: Path,
    text_task: MakeTask,
    bos_tokenizer: Any,
    tiny_llama: Any,
    gain: float,
    chosen: str,
) -> None:
    monkeypatch.setattr(bos, "token_losses", with_gain(gain))
    auto, asked = (build(text_task(files=[corpus], bos=own), bos_tokenizer, tiny_llama()) for own in ("auto", chosen))
    assert isinstance(auto, TextTask)
    assert isinstance(asked, TextTask)
    assert torch.equal(auto.calibration, asked.calibration)
    assert torch.equal(auto.windows(20, None), asked.windows(20, None))
    assert auto.protocol == asked.protocol  # both losses too: a protocol that is asked for is measured alike
    assert auto.protocol["bos_measured"]["loss_without_bos"] == pytest.approx(2 + gain)
    assert auto.protocol["bos"] == chosen


def test_the_choice_does_not_depend_on_seed_or_size_of_the_calibration(
    corpus: Path, text_task: MakeTask, tiny_tokenizer: Any, tiny_llama: Any
) -> None:
    sizes: list[dict[str, Any]] = [{}, {"seed": 3}, {"count": 1, "length": 5}]
    tasks = [build(text_task(files=[corpus], bos="auto", **own), tiny_tokenizer, tiny_llama()) for own in sizes]
    assert len({str(task.protocol["bos_measured"]) for task in tasks}) == 1


def test_a_tokenizer_without_bos_needs_no_decision(
    corpus: Path, text_task: MakeTask, tiny_tokenizer: Any, tiny_llama: Any
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.bos_token = None
    task = build(text_task(files=[corpus], bos="auto"), tokenizer, tiny_llama())
    assert task.protocol["bos"] == "none"
    assert "bos_measured" not in task.protocol


def test_window_puts_bos_in_front_of_every_calibration_sequence(
    corpus: Path, text_task: MakeTask, bos_tokenizer: Any
) -> None:
    plain, led = (build(text_task(files=[corpus], bos=own), bos_tokenizer) for own in ("none", "window"))
    assert isinstance(plain, TextTask)
    assert isinstance(led, TextTask)
    assert led.calibration.shape == plain.calibration.shape, "BOS takes one place of the asked length"
    assert (led.calibration[:, 0] == bos_tokenizer.bos_token_id).all()
    assert bos_tokenizer.bos_token_id not in led.calibration[:, 1:]
    stream = {tuple(row.tolist()) for row in led.calibration[:, 1:]}
    fresh = build(text_task(files=[corpus], bos="none", length=15), bos_tokenizer)
    assert isinstance(fresh, TextTask)
    assert stream == {tuple(row.tolist()) for row in fresh.calibration}
