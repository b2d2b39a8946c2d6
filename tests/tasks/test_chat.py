"""Conversations: what the chat template makes of them, their split, and rows that are none."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset

from harness import paragraphs, write_corpus
from policyprune.config.schema import Calibration, Chat
from policyprune.config.texts import corpus_of, training_corpus
from policyprune.errors import UsageError
from policyprune.recovery.material import of_text
from policyprune.recovery.options import Distill
from policyprune.tasks import build
from policyprune.tasks.corpora import calibration_documents
from policyprune.tasks.corpora import test_documents as documents_of_the_test
from policyprune.tasks.in_memory import Cutting, in_memory
from policyprune.tasks.text_sources import sources_of

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{{ '[' + message.role + '] ' + message.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Any) -> Any:
    """One with a chat template."""
    own = copy.deepcopy(tiny_tokenizer)
    own.chat_template = TEMPLATE
    return own


def conversations(count: int) -> list[list[dict[str, Any]]]:
    texts = paragraphs(2 * count)
    return [
        [{"role": "user", "content": texts[2 * n]}, {"role": "assistant", "content": texts[2 * n + 1]}]
        for n in range(count)
    ]


def write_rows(path: Path, chats: list[Any]) -> Path:
    rows = [{"messages": messages} for messages in chats]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        lines = path.suffix == ".jsonl"
        path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    return path


def chat_of(path: Path, **changes: Any) -> Chat:
    calibration = Calibration(count=8, length=16, seed=0)
    values = {"name": "chat", "files": [str(path)], "bos": "none", "calibration": calibration, "test_fraction": 0.25}
    return Chat(**(values | changes))


def set_by_hand(messages: list[dict[str, str]]) -> str:
    return "<s>" + "".join(f"[{message['role']}] {message['content']}</s>" for message in messages)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_every_conversation_is_set_by_the_template_on_one_side(tmp_path: Path, tokenizer: Any, name: str) -> None:
    chats = conversations(60)
    config = chat_of(write_rows(tmp_path / name, chats))
    held_out = documents_of_the_test(config, tokenizer)
    trained = list(calibration_documents(config, {document.key for document in held_out}, tokenizer))
    assert sorted(document.text for document in [*held_out, *trained]) == sorted(map(set_by_hand, chats))
    assert 5 < len(held_out) < 25
    assert not {document.key for document in held_out} & {document.key for document in trained}


def test_the_split_does_not_depend_on_the_template(tmp_path: Path, tokenizer: Any) -> None:
    path = write_rows(tmp_path / "a.jsonl", conversations(40))
    other = tmp_path / "other.jinja"
    other.write_text("{% for message in messages %}{{ message.content }}|{% endfor %}")
    first = documents_of_the_test(chat_of(path), tokenizer)
    second = documents_of_the_test(chat_of(path, template=str(other)), tokenizer)
    assert [document.key for document in first] == [document.key for document in second]
    assert second[0].text.count("|") == 2


def test_special_tokens_of_the_template_are_tokens(tmp_path: Path, tokenizer: Any) -> None:
    chats = conversations(40)
    path = write_rows(tmp_path / "a.jsonl", chats)
    task = build(chat_of(path), tokenizer)
    assert task.protocol["separator"] == ""
    assert len(task.protocol["template"]) == 12
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    count = len(documents_of_the_test(chat_of(path), tokenizer))
    assert (task.test == bos).sum() == count  # type: ignore[attr-defined]
    assert (task.test == eos).sum() == 2 * count  # type: ignore[attr-defined]
    assert bos in task.inputs(torch.arange(8))["input_ids"]


def test_bos_stands_once_in_front_of_the_test_text(tmp_path: Path, tokenizer: Any, bos_tokenizer: Any) -> None:
    adding = copy.deepcopy(bos_tokenizer)
    adding.chat_template = TEMPLATE
    path = write_rows(tmp_path / "a.jsonl", conversations(20))
    plain, with_bos = build(chat_of(path), tokenizer), build(chat_of(path, bos="text"), adding)
    assert torch.equal(plain.test, with_bos.test)  # type: ignore[attr-defined]


def test_no_template_says_what_to_do(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = write_rows(tmp_path / "a.jsonl", conversations(4))
    with pytest.raises(UsageError, match=r"task\.template: this tokenizer has no chat template; .* or name a file"):
        build(chat_of(path), tiny_tokenizer)


def test_the_date_in_a_template_is_always_the_same(tmp_path: Path, tokenizer: Any) -> None:
    dated = tmp_path / "dated.jinja"
    dated.write_text("{{ strftime_now('%d %B %Y') }}{{ messages[0].content }}")
    path = write_rows(tmp_path / "a.jsonl", conversations(8))
    documents = documents_of_the_test(chat_of(path, template=str(dated), test_fraction=0.9), tokenizer)
    assert all(document.text.startswith("26 July 2024") for document in documents)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("hello", "holds a string as 'messages' of row 3, where a list"),
        ([], "holds an empty list as 'messages' of row 3"),
        (["hello"], "holds a string as message 1 of 'messages' of row 3"),
        ([{"role": "user"}], "holds null as 'content' of message 1 of 'messages' of row 3"),
        ([{"role": 3, "content": "hello"}], "holds a number as 'role' of message 1"),
        ([{"role": "tool", "content": "x"}], "'messages' of row 3, which the chat template refuses: .*no tools here"),
    ],
)
def test_a_row_that_is_no_conversation_is_named(tmp_path: Path, tokenizer: Any, messages: Any, words: str) -> None:
    path = write_rows(tmp_path / "a.jsonl", [*conversations(2), messages, *conversations(2)])
    with pytest.raises(UsageError, match=rf"^task\.files: .*a\.jsonl.* {words}") as error:
        build(chat_of(path), tokenizer)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.txt", "a.json"])
def test_plain_texts_are_no_conversations(tmp_path: Path, tokenizer: Any, name: str) -> None:
    path = write_corpus(tmp_path / name, paragraphs(4))
    if name == "a.json":
        path.write_text(json.dumps(paragraphs(4)))
    with pytest.raises(UsageError, match=r"task\.files: .*where .*'messages'"):
        build(chat_of(path), tokenizer)


def test_the_first_conversations_of_a_single_split_are_the_test(tmp_path: Path, tokenizer: Any) -> None:
    chats = conversations(60)
    rows = Dataset.from_list([{"messages": messages, "id": str(n)} for n, messages in enumerate(chats)])
    rows.to_parquet(str(tmp_path / "data" / "train-00000-of-00001.parquet"))
    config = chat_of(tmp_path, files=None, source=str(tmp_path), test_split="train", test_documents=5)
    held_out = documents_of_the_test(config, tokenizer)
    trained = list(calibration_documents(config, {document.key for document in held_out}, tokenizer))
    assert [document.text for document in held_out] == list(map(set_by_hand, chats[:5]))
    assert len(trained) == 55
    assert not {document.key for document in held_out} & {document.key for document in trained}


def test_conversations_are_trained_on_and_measured_by_their_word(tmp_path: Path, tokenizer: Any) -> None:
    path = write_rows(tmp_path / "own.jsonl", conversations(60))
    measured, trained = corpus_of(f"chat:{path}"), training_corpus(f"chat:{path}", "recovery.task")
    assert isinstance(measured, Chat)
    assert (measured.name, measured.test_files, trained.test_files) == ("own", [str(path)], None)
    assert training_corpus("tulu3", "recovery.task").source == "allenai/tulu-3-sft-mixture"
    material = of_text(Distill(length=32, held_out=8), sources_of(trained), tokenizer, None)
    rows = [*material.held_out, *material.training._epoch(0)]
    assert tokenizer.eos_token_id in torch.cat(rows)
    tested = {document.text for document in documents_of_the_test(trained, tokenizer)}
    told = set(re.findall(r"Story 0-\d+\.", "".join(map(tokenizer.decode, rows))))
    assert tested
    assert not [name for name in told if any(name in text for text in tested)]


def test_conversations_in_memory_are_the_same_sequences(tmp_path: Path, tokenizer: Any, tiny_llama: Any) -> None:
    chats, model = conversations(20), tiny_llama(vocab_size=len(tokenizer))
    cutting = Cutting(tokenizer, 16, bos=False)
    task = in_memory(chats, model, cutting)
    ids = tokenizer("".join(map(set_by_hand, chats)), add_special_tokens=False, verbose=False)["input_ids"]
    assert task.inputs(torch.arange(len(ids) // 16))["input_ids"].flatten().tolist() == ids[: len(ids) // 16 * 16]


@pytest.mark.parametrize(
    ("chats", "with_template", "words"),
    [
        ([[{"role": "user"}]], True, "data: holds null as 'content' of message 1 of conversation 1"),
        ([[], *conversations(2)], True, "data: holds an empty list as conversation 1"),
        ([*conversations(2), "hello"], True, "data: holds a string as conversation 3"),
        (["hello", *conversations(2)], True, "data: texts .* cannot be mixed"),
        (conversations(2)[0], True, "data: messages that are in no conversation"),
        ([{"messages": own} for own in conversations(2)], True, "data: messages that are in no conversation"),
        (conversations(2), False, "data: conversations need a tokenizer with a chat template"),
    ],
)
def test_conversations_in_memory_are_refused(
    tokenizer: Any, tiny_tokenizer: Any, tiny_llama: Any, chats: Any, with_template: bool, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        in_memory(chats, tiny_llama(), Cutting(tokenizer if with_template else tiny_tokenizer, 16))
