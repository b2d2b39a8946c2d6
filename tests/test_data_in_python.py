"""Chats, mixtures and generated text as data of the Python API."""

from pathlib import Path
from typing import Any

import pytest
import torch

import policyprune as pp
from harness import paragraphs, write_corpus
from policyprune.config.schema import Text
from policyprune.tasks import build
from policyprune.tasks.language_modeling import TextTask

QUICK: dict[str, Any] = {"optimizer": "one_shot", "importance": "magnitude", "tuning": "none"}


def small(count: int = 24) -> pp.Calibration:
    return pp.Calibration(count=count, length=16)


@pytest.fixture(scope="module")
def model(tiny_llama: Any, tiny_tokenizer: Any) -> Any:
    return tiny_llama(vocab_size=len(tiny_tokenizer))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("texts")
    return [str(write_corpus(folder / f"{name}.jsonl", paragraphs(90, seed))) for seed, name in enumerate("ab")]


def check(data: Text, model: Any, tokenizer: Any) -> None:
    """Pruned, recovered and measured, on the sequences and the test that the command line would take."""
    result = pp.prune(model, data, tokenizer, **QUICK)
    assert (result.report.sequences, result.report.tokens) == (24, 24 * 16)
    bos = result.report.protocol["bos"]
    assert isinstance(bos, bool)
    before = pp.evaluate(result.model, data, tokenizer, length=32, bos=bos)
    task = build(data, tokenizer, model)
    assert isinstance(task, TextTask)
    windows = task.windows(32, None)
    assert before.tokens == windows.numel()
    expected = torch.stack([result.model(row[None], labels=row[None]).loss for row in windows]).mean()
    assert before.loss == pytest.approx(float(expected), rel=1e-4)
    options = pp.Distill(steps=6, length=16, held_out=8, learning_rate=1e-3, evaluations=2, dtype="float32")
    recovered = pp.recover(result, data, tokenizer, recovery=options)
    assert (recovered.report["held_out"]["items"], recovered.report["tokens"]) == (8, 6 * 8 * 16)
    assert recovered.report["held_out_documents"] > 0


def test_a_mixture_is_data(model: Any, tiny_tokenizer: Any, files: list[str]) -> None:
    check(pp.Mixture(parts=files, weights=[2, 1], calibration=small()), model, tiny_tokenizer)


def test_what_the_model_writes_is_data(
    model: Any, tiny_tokenizer: Any, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLICYPRUNE_CACHE", str(tmp_path))
    data = pp.Generated(test_task=files[0], length=24, tokens=1200, calibration=small())
    check(data, model, tiny_tokenizer)
    assert len(list((tmp_path / "generated").iterdir())) == 1
    with pytest.raises(pp.UsageError, match="dense: text that the dense model writes takes the dense model"):
        pp.recover(model, data, tiny_tokenizer, recovery="finetune")


@pytest.mark.parametrize(
    ("data", "choices", "words"),
    [
        (pp.Mixture(parts=["news"]), {}, r"^parts: 'news' is none of"),
        (pp.Mixture(parts=["c4"], weights=[0.0]), {}, r"^weights: 0\.0 is out of range"),
        (pp.Generated(temperature="hot"), {}, r"^temperature: 'hot' is not a number"),  # type: ignore[arg-type]
        (pp.Chat(), {}, r"^source, task\.files: give exactly one"),
        (pp.Mixture(parts=["c4", "wikipedia"], calibration=small(1)), {}, r"^weights: 'wikipedia' gets none of the 1"),
        (pp.Mixture(parts=["c4"]), {"length": 32}, r"^length: a Mixture says it itself"),
    ],
)
def test_wrong_wishes_are_refused(
    model: Any, tiny_tokenizer: Any, data: Any, choices: dict[str, Any], words: str
) -> None:
    with pytest.raises(pp.UsageError, match=words):
        pp.prune(model, data, tiny_tokenizer, **QUICK, **choices)


def test_a_recovery_asks_for_no_calibration_sequences(model: Any, tiny_tokenizer: Any, files: list[str]) -> None:
    """4,096 by default, which the file does not hold."""
    data = pp.Mixture(parts=files, calibration=pp.Calibration())
    options = pp.Finetune(steps=1, length=16, held_out=4, evaluations=1)
    assert pp.recover(model, data, tiny_tokenizer, recovery=options).report["steps"] == 1


def test_a_tokenizer_is_needed(model: Any, files: list[str]) -> None:
    with pytest.raises(pp.UsageError, match="tokenizer: None, but Mixture is read by a tokenizer"):
        pp.prune(model, pp.Mixture(parts=files, calibration=small()), **QUICK)
