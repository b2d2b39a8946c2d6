"""Texts, token ids, labelled tensors and tasks of a caller's own, all taken as a task."""

from typing import Any

import pytest
import torch

from encoders import make_encoder
from harness import paragraphs
from policyprune.errors import UsageError
from policyprune.tasks.in_memory import Cutting, OwnTask, in_memory, labelled
from policyprune.tasks.packing import Sequences

MASK = (torch.arange(9) < torch.tensor([[9], [4], [6], [7]])).long()
IDS = torch.randint(5, 250, (4, 9), generator=torch.Generator().manual_seed(0)) * MASK


def of(**targets: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"input_ids": IDS, "attention_mask": MASK, **targets}


@pytest.fixture
def llama(tiny_llama: Any) -> Any:
    return tiny_llama()


def test_texts_are_packed_and_cut(llama: Any, tiny_tokenizer: Any) -> None:
    task = in_memory(paragraphs(10), llama, Cutting(tiny_tokenizer, 16, bos=False))
    assert isinstance(task, Sequences)
    whole = "".join(f"{text}\n\n" for text in paragraphs(10))
    assert whole.startswith(tiny_tokenizer.decode(task.ids.flatten()[:100]))
    assert task.protocol == {"bos": False}
    one = in_memory(paragraphs(10)[0], llama, Cutting(tiny_tokenizer, 16, bos=False))
    assert torch.equal(one.inputs(torch.tensor([0]))["input_ids"][0], task.ids[0])


def test_bos_leads_where_it_is_said_or_helps(llama: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said = in_memory(paragraphs(10), llama, Cutting(tiny_tokenizer, 16, bos=True))
    assert isinstance(said, Sequences)
    assert bool((said.ids[:, 0] == tiny_tokenizer.bos_token_id).all())
    for where in ("window", "text"):
        monkeypatch.setattr("policyprune.tasks.in_memory.where_bos_stands", lambda *_, w=where: (w, {"tokens": 3}))
        measured = in_memory(paragraphs(10), llama, Cutting(tiny_tokenizer, 16))
        assert isinstance(measured, Sequences)
        assert measured.protocol == {"bos": where == "window", "bos_measured": {"tokens": 3}}
    tiny_tokenizer = type("NoBos", (), {"bos_token_id": None, "__call__": lambda self, *a, **k: tiny(*a, **k)})()
    with pytest.raises(UsageError, match="bos: True, but this tokenizer has no BOS token"):
        in_memory(paragraphs(10), llama, Cutting(tiny_tokenizer, 16, bos=True))


def tiny(texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
    """A tokenizer of letters."""
    return {"input_ids": [[ord(letter) % 250 for letter in text] for text in texts]}


def test_token_ids_as_lists_are_cut_and_as_a_tensor_stay(llama: Any) -> None:
    tokens = list(range(5, 105))
    cut = in_memory([tokens[:30], tokens[30:]], llama, Cutting(length=25))
    assert isinstance(cut, Sequences)
    assert torch.equal(cut.ids, torch.tensor(tokens).view(4, 25))
    assert in_memory(cut.ids, llama, Cutting()).inputs(torch.tensor([2]))["input_ids"].tolist() == [tokens[50:75]]


@pytest.mark.parametrize(
    ("labels", "head"),
    [
        (torch.tensor([0, 1, 1, 0]), {}),
        (torch.tensor([[0], [1], [1], [0]]), {}),
        (torch.tensor([0, 1, 1, 0], dtype=torch.int32), {}),
        (torch.tensor([0.5, 1.5, -1.0, 0.0]), {"num_labels": 1}),
        (torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]), {"num_labels": 3}),
    ],
    ids=["classes", "column", "int32", "scores", "several at once"],
)
def test_the_loss_is_the_models_own(labels: torch.Tensor, head: dict[str, int]) -> None:
    model = make_encoder(**head)
    task = labelled(of(labels=labels))
    with torch.no_grad():
        losses = task.loss(model, torch.arange(4))
        wanted = labels.long() if labels.dtype == torch.int32 else labels
        expected = model(**of(labels=wanted)).loss
    assert losses.shape == (4,)
    torch.testing.assert_close(losses.mean(), expected)


def test_the_loss_of_answers_and_of_tokens(llama: Any) -> None:
    model = make_encoder("QuestionAnswering")
    spans = {"start_positions": torch.tensor([1, 0, 2, 3]), "end_positions": torch.tensor([3, 2, 5, 4])}
    with torch.no_grad():
        for row in range(4):
            length = int(MASK[row].sum())
            one = {name: own[[row], :length] for name, own in of().items()}
            expected = model(**one, **{name: own[[row]] for name, own in spans.items()}).loss
            torch.testing.assert_close(labelled(of(**spans)).loss(model, torch.tensor([row]))[0], expected)
        labels = torch.where(MASK.bool(), IDS, -100)
        losses = labelled(of(labels=labels)).loss(llama, torch.arange(4))
        for row in range(4):
            expected = llama(**{name: own[[row]] for name, own in of(labels=labels).items()}).loss
            torch.testing.assert_close(losses[row], expected)


def test_batches_of_several_widths_are_padded_on_the_right() -> None:
    data = of(labels=torch.tensor([0, 1, 1, 0]))
    batches = [
        {name: own[:2] for name, own in data.items()},
        {name: own[2:, :7] if own.dim() > 1 else own[2:] for name, own in data.items()},
    ]
    task = labelled(batches, pad=3)
    assert task.lengths.tolist() == [9, 4, 6, 7]
    assert task.encoded.tensors["input_ids"][2:, 7:].eq(3).all()
    assert torch.equal(task.encoded.tensors["attention_mask"], MASK)
    assert task.inputs(torch.tensor([1, 2]))["input_ids"].shape == (2, 6)
    without = labelled({"input_ids": IDS, "labels": torch.zeros(4)})
    assert without.lengths.tolist() == [9] * 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"labels": torch.zeros(4)}, "data: a batch has no 'input_ids', only labels"),
        (of(), "data: a batch has no 'labels', only input_ids, attention_mask"),
        (of(start_positions=torch.zeros(4)), "data: a batch has no 'end_positions'"),
        (of(labels=torch.zeros(4)) | {"attention_mask": MASK.flip(1)}, "data: the attention_mask begins with padding"),
        (
            [{"input_ids": IDS[:2], "labels": IDS[:2]}, {"input_ids": IDS[:2, :5], "labels": IDS[:2, :5]}],
            "data: batches of several widths need an attention_mask",
        ),
        (3, "data: int is neither texts nor token ids nor batches"),
        (torch.zeros(2, 3), "data: a tensor of token ids has the shape (N, L)"),
        (["a text"], "data: texts need a tokenizer"),
        (torch.zeros(2, 300, dtype=torch.long), "length: 300 is more than the 128 positions of this model"),
    ],
)
def test_what_is_no_data_is_refused(data: Any, message: str, llama: Any) -> None:
    with pytest.raises(UsageError) as refused:
        in_memory(data, llama, Cutting(length=4))
    assert str(refused.value).startswith(message)


def test_a_task_of_ones_own_gives_float32(llama: Any) -> None:
    class Halves:
        lengths = [3, 4]  # noqa: RUF012

        def inputs(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"input_ids": IDS[rows]}

        def loss(self, model: Any, rows: torch.Tensor) -> torch.Tensor:
            return rows.to(torch.bfloat16)

    task = in_memory(Halves(), llama, Cutting())  # type: ignore[arg-type]
    assert isinstance(task, OwnTask)
    assert task.loss(llama, torch.tensor([1])).dtype == torch.float32
    assert task.lengths.tolist() == [3, 4]
    assert in_memory(task, llama, Cutting()).lengths.tolist() == [3, 4]
