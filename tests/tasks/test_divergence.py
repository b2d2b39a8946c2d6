"""The divergence from the dense model, against its definition."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div

from encoders import make_encoder
from policyprune.errors import UsageError
from policyprune.models.examples import example
from policyprune.tasks import divergence
from policyprune.tasks.divergence import Divergence
from policyprune.tasks.in_memory import labelled
from policyprune.tasks.packing import Sequences

ROWS = torch.tensor([2, 0, 3])


def examples(classes: int = 2) -> Any:
    ids = torch.randint(5, 90, (5, 12))
    attention = torch.ones_like(ids)
    attention[0, 7:] = attention[3, 4:] = 0
    return labelled({"input_ids": ids, "attention_mask": attention, "labels": torch.randint(0, classes, (5,))})


def kl(student: Tensor, dense: Tensor) -> Tensor:
    """Of logits (..., classes), summed over classes."""
    both = (logits.double().log_softmax(-1) for logits in (student, dense))
    return kl_div(*both, reduction="none", log_target=True).sum(-1)


@pytest.mark.parametrize("most", [128, 1000])
def test_of_a_language_model(tiny_llama: Any, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(divergence, "MOST_CLASSES", most)
    dense, other = tiny_llama(), tiny_llama(seed=1)
    data = Sequences(torch.randint(5, 300, (6, 20)))
    loss = Divergence(data, dense)
    assert float(loss.loss(dense, ROWS).abs().max()) < 1e-5
    expected = kl(other(data.ids[ROWS]).logits, dense(data.ids[ROWS]).logits).mean(1)
    found = loss.loss(other, ROWS).double()
    if most == 1000:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    else:  # telling fewer tokens apart never makes it larger, nor much smaller
        assert bool((found <= expected + 1e-6).all())
        assert bool((found > 0.5 * expected).all())


def test_of_a_classifier_without_its_padding() -> None:
    dense, other = example("bert"), example("bert")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    data = examples()
    inputs = data.inputs(ROWS)
    expected = kl(other(**inputs).logits, dense(**inputs).logits).flatten()
    torch.testing.assert_close(Divergence(data, dense).loss(other, ROWS).double(), expected, rtol=1e-3, atol=1e-6)


def test_no_keys_and_values_are_kept_for_tokens_to_come(tiny_llama: Any) -> None:
    dense, caches = tiny_llama(), []
    dense.base_model.register_forward_hook(lambda module, args, out: caches.append(out.past_key_values))
    Divergence(Sequences(torch.randint(5, 300, (6, 20))), dense).loss(dense, ROWS)
    assert caches == [None, None]


def test_what_the_dense_model_says_is_computed_once(tiny_llama: Any) -> None:
    dense, other = tiny_llama(), tiny_llama(seed=1)
    calls: list[Any] = []
    dense.register_forward_hook(lambda *args: calls.append(1))
    dense.base_model.register_forward_hook(lambda *args: calls.append(1))
    loss = Divergence(Sequences(torch.randint(5, 300, (6, 20))), dense)
    first = loss.loss(other, ROWS)
    count = len(calls)
    assert torch.equal(loss.loss(other, ROWS), first)
    assert len(calls) == count


@pytest.mark.parametrize("head", ["MaskedLM", "TokenClassification"])
def test_of_a_prediction_for_each_token_without_its_padding(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole head counts, that of a masked language model has a layer of its own in front of the vocabulary."""
    monkeypatch.setattr(divergence, "MOST_CLASSES", 1000)
    dense = make_encoder(head)
    other = copy.deepcopy(dense)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    data = examples()
    inputs = data.inputs(ROWS)
    counted = inputs["attention_mask"].bool()
    each = kl(other(**inputs).logits, dense(**inputs).logits)
    expected = torch.stack([of_row[own].mean() for of_row, own in zip(each, counted, strict=True)])
    torch.testing.assert_close(Divergence(data, dense).loss(other, ROWS).double(), expected, rtol=1e-3, atol=1e-6)


def test_a_model_without_logits_is_refused() -> None:
    dense = make_encoder().base_model
    with pytest.raises(UsageError, match="gives no logits"):
        Divergence(examples(), dense).loss(dense, ROWS)


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_scaled_it_asks_what_is_predicted_and_not_how_surely(factor: float) -> None:
    dense = example("bert")
    other = copy.deepcopy(dense)
    for parameter in other.classifier.parameters():
        parameter.data *= factor
    data = examples(3)
    assert float(Divergence(data, dense, scaled=True).loss(other, ROWS).abs().max()) < 1e-4
    assert (float(Divergence(data, dense).loss(other, ROWS).max()) > 1e-3) == (factor != 1)


@pytest.mark.parametrize("head", ["SequenceClassification", "QuestionAnswering"])
def test_scaled_it_is_the_least_over_all_scales(head: str) -> None:
    dense, other = make_encoder(head), make_encoder(head, seed=1)
    data = examples()
    found = Divergence(data, dense, scaled=True).loss(other, ROWS)
    plain = Divergence(data, dense)
    outputs = other.classifier if head == "SequenceClassification" else other.qa_outputs
    weight, bias = outputs.weight.data.clone(), outputs.bias.data.clone()
    tried = []
    for exponent in torch.linspace(-3, 3, 61).tolist():
        outputs.weight.data, outputs.bias.data = weight * 2**exponent, bias * 2**exponent
        tried.append(float(plain.loss(other, ROWS).mean()))
    assert float(found.mean()) <= min(tried) + 1e-3
    assert float(found.mean()) == pytest.approx(min(tried), rel=0.05)


def test_scaled_scores_and_tokens_stay_as_they_are(tiny_llama: Any) -> None:
    dense, other = make_encoder(num_labels=1), make_encoder(num_labels=1, seed=1)
    data = examples(1)
    assert torch.equal(
        Divergence(data, dense, scaled=True).loss(other, ROWS), Divergence(data, dense).loss(other, ROWS)
    )
    llama, another = tiny_llama(), tiny_llama(seed=1)
    text = Sequences(torch.randint(5, 300, (6, 20)))
    assert torch.equal(
        Divergence(text, llama, scaled=True).loss(another, ROWS), Divergence(text, llama).loss(another, ROWS)
    )
