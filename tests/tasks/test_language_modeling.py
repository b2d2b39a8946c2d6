"""Calibration sequences, test windows, the loss of each sequence, and where BOS stands in all of them."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import paragraphs, write_corpus
from policyprune.config.schema import LanguageModeling
from policyprune.errors import UsageError
from policyprune.tasks import corpora, language_modeling
from policyprune.tasks.language_modeling import TextTask, build, where_bos_stands

MakeTask = Callable[..., LanguageModeling]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.txt", paragraphs(80))


def encoded(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a text without special ones."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def test_calibration_has_the_shape_that_was_asked_for(corpus: Path, text_task: MakeTask, tiny_tokenizer: Any) -> None:
    task = build(text_task(files=[corpus], count=12, length=24), tiny_tokenizer)
    assert task.ids.shape == (12, 24)
    assert task.ids.dtype == torch.long
    assert task.ids.max() < len(tiny_tokenizer)


def test_same_seed_same_calibration_other_seed_other(corpus: Path, text_task: MakeTask, tiny_tokenizer: Any) -> None:
    first, again, other = (build(text_task(files=[corpus], seed=seed), tiny_tokenizer).ids for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_seed_of_torch_does_not_matter(corpus: Path, text_task: MakeTask, tiny_tokenizer: Any) -> None:
    first = build(text_task(files=[corpus]), tiny_tokenizer)
    torch.manual_seed(99)
    assert torch.equal(first.ids, build(text_task(files=[corpus]), tiny_tokenizer).ids)


def test_calibration_is_packed_from_training_documents(corpus: Path, text_task: MakeTask, tiny_tokenizer: Any) -> None:
    config = text_task(files=[corpus], count=60, length=32)
    held_out = {document.text.split(".")[0] for document in corpora.test_documents(config, None)}
    rows = [tiny_tokenizer.decode(row) for row in build(config, tiny_tokenizer).ids]
    text = "|".join(rows)
    assert held_out
    assert not [name for name in held_out if f"{name}." in text]
    assert ".\n\nStory" in text, "the documents are not joined by the separator"


@pytest.mark.parametrize("length", [7, 16])
def test_too_small_corpus_names_the_most_that_is_possible(
    tmp_path: Path, text_task: MakeTask, tiny_tokenizer: Any, length: int
) -> None:
    small = write_corpus(tmp_path / "small.txt", paragraphs(10))
    with pytest.raises(UsageError, match=r"task\.calibration\.count: 500 .*use at most (\d+)") as error:
        build(text_task(files=[small], count=500, length=length), tiny_tokenizer)
    most = int(str(error.value).rpartition(" ")[2])
    assert 1 < most < 500
    assert build(text_task(files=[small], count=most, length=length), tiny_tokenizer).ids.shape[0] == most
    with pytest.raises(UsageError):
        build(text_task(files=[small], count=most + 1, length=length), tiny_tokenizer)


def test_test_text_is_the_held_out_documents_joined(corpus: Path, text_task: MakeTask, tiny_tokenizer: Any) -> None:
    config = text_task(files=[corpus], separator="\n \n")
    text = "\n \n".join(document.text for document in corpora.test_documents(config, None))
    task = build(config, tiny_tokenizer)
    assert task.test.tolist() == encoded(tiny_tokenizer, text)
    assert tiny_tokenizer.decode(task.test) == text


def test_bos_first_in_the_text_or_nowhere(corpus: Path, text_task: MakeTask, bos_tokenizer: Any) -> None:
    bos = bos_tokenizer.bos_token_id
    plain = build(text_task(files=[corpus], bos="none"), bos_tokenizer)
    text = build(text_task(files=[corpus], bos="text"), bos_tokenizer)
    assert bos not in plain.test.tolist()
    assert text.test.tolist() == [bos, *plain.test.tolist()]
    assert plain.bos is None
    assert text.bos is None
    assert bos not in text.ids


def test_bos_in_each_window(corpus: Path, text_task: MakeTask, bos_tokenizer: Any) -> None:
    task = build(text_task(files=[corpus], bos="window"), bos_tokenizer)
    windows = task.windows(20, None)
    assert windows.shape == (len(task.test) // 19, 20)
    assert (windows[:, 0] == bos_tokenizer.bos_token_id).all()
    assert torch.equal(windows[:, 1:].flatten(), task.test[: windows.shape[0] * 19])
    assert bos_tokenizer.bos_token_id not in task.test


def test_bos_in_each_window_needs_a_bos_token(corpus: Path, text_task: MakeTask, tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.bos_token = None
    with pytest.raises(UsageError, match=r"task\.bos: 'window'.*text or none"):
        build(text_task(files=[corpus], bos="window"), tokenizer)


def flat_task(tokens: int, bos: int | None = None) -> TextTask:
    """A task whose test tokens are 0, 1, 2, ..."""
    return TextTask(torch.arange(40).view(10, 4), test=torch.arange(tokens), bos=bos)


@pytest.mark.parametrize(
    ("length", "most", "rows"), [(10, None, 10), (10, 1000, 10), (10, 35, 3), (33, None, 3), (100, 10, 1), (10, 2, 1)]
)
def test_windows_cover_the_test_text_in_order(length: int, most: int | None, rows: int) -> None:
    windows = flat_task(105).windows(length, most)
    assert windows.shape == (rows, length)
    assert torch.equal(windows.flatten(), torch.arange(rows * length))


def test_windows_with_bos_never_exceed_the_cap() -> None:
    windows = flat_task(105, bos=777).windows(10, 35)
    assert windows.shape == (3, 10)
    assert windows.numel() <= 35
    assert torch.equal(windows[:, 1:].flatten(), torch.arange(27))


def test_windows_longer_than_the_text_are_refused() -> None:
    with pytest.raises(UsageError, match=r"evaluation\.lengths: 106 .*105 tokens"):
        flat_task(105).windows(106, None)


def test_inputs_are_the_sequences_asked_for() -> None:
    task, rows = flat_task(10), torch.tensor([3, 0])
    assert torch.equal(task.inputs(rows)["input_ids"], task.ids[rows])
    assert task.lengths.tolist() == [task.ids.shape[1]] * len(task.ids)


def test_loss_of_each_sequence_is_that_of_transformers(
    corpus: Path, text_task: MakeTask, tiny_tokenizer: Any, tiny_llama: Callable[..., Any]
) -> None:
    task, model = build(text_task(files=[corpus]), tiny_tokenizer), tiny_llama()
    rows = torch.tensor([5, 0, 3])
    losses = task.loss(model, rows)
    assert losses.shape == (3,)
    for row, loss in zip(rows, losses, strict=True):
        ids = task.ids[row][None]
        torch.testing.assert_close(loss, model(input_ids=ids, labels=ids).loss, rtol=1e-5, atol=1e-5)


def test_protocol_says_how_the_text_was_made(corpus: Path, text_task: MakeTask, tiny_tokenizer: Any) -> None:
    protocol = build(text_task(files=[corpus], bos="text", seed=4), tiny_tokenizer).protocol
    assert protocol["calibration"] == {"split": "train", "count": 8, "length": 16, "seed": 4}
    assert protocol["bos"] == "text"
    assert protocol["separator"] == "\n\n"
    other = build(text_task(files=[corpus], test_fraction=0.5), tiny_tokenizer).protocol
    assert other["test_text"] != protocol["test_text"]
    assert other["tokenizer"] == protocol["tokenizer"]


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
    monkeypatch.setattr(language_modeling, "token_losses", with_gain(gain))
    protocol, measured = where_bos_stands(tiny_llama(), 0, torch.arange(1, 4000))
    assert protocol == chosen
    assert measured["tokens"] == 8 * 126, "8 windows of 128 tokens, of which BOS and the first are not compared"
    assert measured["loss_with_bos"] == pytest.approx(2.0)


@pytest.mark.parametrize("tokens", [2, 50, 127, 300])
def test_both_losses_are_of_the_same_tokens(tiny_llama: Any, tokens: int) -> None:
    model, ids = tiny_llama(), torch.randint(3, 200, (tokens,))
    _, measured = where_bos_stands(model, 0, ids)
    width = min(127, tokens)
    rows = ids[: tokens // width * width].view(-1, width)
    plain, led = rows, torch.cat([torch.zeros(len(rows), 1, dtype=torch.long), rows], dim=1)
    expected = []
    for sequences, skipped in ((plain, 1), (led, 2)):
        scores = model(sequences).logits[:, :-1].double().log_softmax(-1)
        expected.append(-scores.gather(-1, sequences[:, 1:, None])[:, skipped - 1 :].mean())
    assert measured["loss_without_bos"] == pytest.approx(float(expected[0]), rel=1e-5)
    assert measured["loss_with_bos"] == pytest.approx(float(expected[1]), rel=1e-5)
    assert measured["tokens"] == len(rows) * (width - 1)


def test_windows_fit_into_the_positions_of_the_model(tiny_llama: Any) -> None:
    _, measured = where_bos_stands(tiny_llama(max_position_embeddings=32), 0, torch.arange(1, 290))
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
    monkeypatch.setattr(language_modeling, "token_losses", with_gain(gain))
    auto, asked = (build(text_task(files=[corpus], bos=bos), bos_tokenizer, tiny_llama()) for bos in ("auto", chosen))
    assert isinstance(auto, TextTask)
    assert isinstance(asked, TextTask)
    assert torch.equal(auto.ids, asked.ids)
    assert torch.equal(auto.windows(20, None), asked.windows(20, None))
    assert auto.protocol == asked.protocol  # both losses too: a protocol that is asked for is measured alike
    assert auto.protocol["bos_measured"]["loss_without_bos"] == pytest.approx(2 + gain)
    assert auto.protocol["bos"] == chosen


def test_the_choice_does_not_depend_on_seed_or_size_of_the_calibration(
    corpus: Path, text_task: MakeTask, tiny_tokenizer: Any, tiny_llama: Any
) -> None:
    sizes: list[dict[str, Any]] = [{}, {"seed": 3}, {"count": 1, "length": 5}]
    tasks = [build(text_task(files=[corpus], bos="auto", **size), tiny_tokenizer, tiny_llama()) for size in sizes]
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
    plain, led = (build(text_task(files=[corpus], bos=bos), bos_tokenizer) for bos in ("none", "window"))
    assert isinstance(plain, TextTask)
    assert isinstance(led, TextTask)
    assert led.ids.shape == plain.ids.shape, "BOS takes one place of the asked length"
    assert (led.ids[:, 0] == bos_tokenizer.bos_token_id).all()
    assert bos_tokenizer.bos_token_id not in led.ids[:, 1:]
    stream = {tuple(row.tolist()) for row in led.ids[:, 1:]}
    fresh = build(text_task(files=[corpus], bos="none", length=15), bos_tokenizer)
    assert isinstance(fresh, TextTask)
    assert stream == {tuple(row.tolist()) for row in fresh.ids}
