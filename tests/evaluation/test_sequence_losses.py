"""Loss, perplexity and accuracy on the sequences of a task."""

import math
from typing import Any

import pytest
import torch

from encoders import make_encoder
from policyprune.evaluation.perplexity import perplexity
from policyprune.evaluation.sequence_losses import measure
from policyprune.tasks.in_memory import labelled
from policyprune.tasks.packing import Sequences


def ids(count: int, length: int) -> torch.Tensor:
    return torch.randint(5, 250, (count, length), generator=torch.Generator().manual_seed(0))


def test_perplexity_is_that_of_windows(tiny_llama: Any) -> None:
    model, windows = tiny_llama(), ids(7, 20)
    found = measure(model, Sequences(windows, {"bos": True}), 64)
    assert found.perplexity == pytest.approx(perplexity(model, windows, 64))
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert (found.sequences, found.tokens, found.bos, found.accuracy) == (7, 140, True, None)
    assert found.loss_stderr is not None
    assert measure(model, Sequences(windows[:1]), 64).loss_stderr is None
    assert str(found) == f"perplexity {found.perplexity:.4g}, loss {found.loss:.4g} (7 sequences, 140 tokens)"


@pytest.mark.parametrize("batch_tokens", [1, 1000])
def test_accuracy_and_loss_of_classes(batch_tokens: int) -> None:
    model, labels = make_encoder(), torch.tensor([0, 1, 1, 0, 1])
    mask = (torch.arange(8) < torch.tensor([[8], [3], [5], [8], [2]])).long()
    data = {"input_ids": ids(5, 8) * mask, "attention_mask": mask}
    found = measure(model, labelled({**data, "labels": labels}), batch_tokens)
    with torch.no_grad():
        out = model(**data, labels=labels)
    assert found.loss == pytest.approx(float(out.loss), rel=1e-5)
    assert found.accuracy == float((out.logits.argmax(-1) == labels).double().mean())
    assert found.perplexity is None
    assert "accuracy" in str(found)


def test_scores_have_a_loss_alone() -> None:
    found = measure(make_encoder(num_labels=1), labelled({"input_ids": ids(4, 6), "labels": torch.rand(4)}), 100)
    assert found.accuracy is None
    assert found.loss > 0
