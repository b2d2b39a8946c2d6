"""Sequences from texts, from token ids and from tensors, without any config."""

from typing import Any

import pytest
import torch

from harness import paragraphs
from policyprune.errors import UsageError
from policyprune.tasks import Task
from policyprune.tasks.packing import encode, pack, sequences

TEXTS = paragraphs(70)


def test_texts_are_packed_one_behind_the_other_and_cut(tiny_tokenizer: Any) -> None:
    stream = [token for text in TEXTS for token in (*encode(tiny_tokenizer, [text])[0], *between(tiny_tokenizer))]
    task = sequences(TEXTS, tiny_tokenizer, 16)
    assert task.ids.shape == (len(stream) // 16, 16)
    assert task.ids.dtype == torch.long
    assert task.ids.flatten().tolist() == stream[: task.ids.numel()]


def between(tokenizer: Any) -> list[int]:
    return encode(tokenizer, ["\n\n"])[0]


def test_as_many_tokens_as_asked_for_and_no_text_is_read_in_vain(tiny_tokenizer: Any) -> None:
    whole = pack(tiny_tokenizer, TEXTS)
    read: list[str] = []
    texts = (read.append(text) or text for text in TEXTS)  # type: ignore[func-returns-value]
    assert pack(tiny_tokenizer, texts, most=100) == whole[:100]
    assert len(read) == 64, "a batch of texts has these tokens"


@pytest.mark.parametrize("bos", [None, 7])
def test_token_ids_need_no_tokenizer_and_bos_takes_a_place_of_each_sequence(bos: int | None) -> None:
    ids = sequences([[1, 2, 3, 4], [5, 6], [8, 9, 10, 11, 12]], length=4, bos=bos).ids.tolist()
    assert ids == ([[1, 2, 3, 4], [5, 6, 8, 9]] if bos is None else [[7, 1, 2, 3], [7, 4, 5, 6], [7, 8, 9, 10]])


def test_a_tensor_stays_as_it_is_and_has_the_losses_of_transformers(tiny_llama: Any) -> None:
    model, ids = tiny_llama(), torch.randint(3, 200, (5, 12), dtype=torch.int32)
    task: Task = sequences(ids)
    assert torch.equal(task.inputs(torch.arange(5))["input_ids"], ids.long())
    assert task.lengths.tolist() == [12] * 5
    losses = task.loss(model, torch.tensor([4, 0]))
    for row, loss in zip((4, 0), losses, strict=True):
        expected = model(input_ids=ids[row][None].long(), labels=ids[row][None].long()).loss
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("data", "length", "message"),
    [
        (["a text"], None, "^length: texts and lists of token ids are cut"),
        (["a text"], 2, "^data: texts need a tokenizer"),
        ([[1, 2, 3]], 4, "^length: the data are shorter than one sequence of 4 tokens"),
        ([], 4, "^length: the data are shorter"),
        (torch.zeros(2, 3), None, r"^data: .* \(N, L\), not \(2, 3\) torch.float32"),
        (torch.zeros(3, dtype=torch.long), None, r"^data: .* not \(3,\)"),
    ],
)
def test_what_makes_no_sequences_is_refused(data: Any, length: int | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sequences(data, length=length)
