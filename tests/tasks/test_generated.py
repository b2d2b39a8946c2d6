"""Text that the dense model writes itself: once, always the same, and never what is measured."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import paragraphs, write_corpus
from policyprune.config.combinations import check_evaluation, check_task
from policyprune.config.schema import Calibration, Evaluation, Generated
from policyprune.config.texts import corpus_of
from policyprune.errors import UsageError
from policyprune.recovery.material import material_of
from policyprune.recovery.options import Distill
from policyprune.tasks import build
from policyprune.tasks.corpora import test_documents as documents_of_the_test
from policyprune.tasks.generated import Writer, written_by
from policyprune.tasks.language_modeling import TextTask

TEMPLATE = (
    "{% for message in messages %}{{ '<s>' + message.role + ': ' + message.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLICYPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def model(tiny_llama: Any, tiny_tokenizer: Any) -> Any:
    return tiny_llama(vocab_size=len(tiny_tokenizer))


@pytest.fixture
def tested(tmp_path: Path) -> str:
    return str(write_corpus(tmp_path / "tested.txt", paragraphs(12)))


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    """Of several lengths."""
    return str(write_corpus(tmp_path / "prompts.jsonl", ["Once", "It was late at night", "The dog and the fox"]))


def generated(**changes: Any) -> Generated:
    calibration = Calibration(count=6, length=16, seed=0)
    values = {
        "name": "generated",
        "bos": "none",
        "length": 12,
        "tokens": 120,
        "batch_size": 4,
        "calibration": calibration,
    }
    return Generated(**(values | changes))


def texts_in(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_it_is_written_once(model: Any, tiny_tokenizer: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, settings = torch.get_rng_state(), model.generation_config
    path = written_by(model, tiny_tokenizer, generated())
    assert path.parent == cache / "generated"
    assert torch.equal(torch.get_rng_state(), before)
    assert model.generation_config is settings
    content = path.read_bytes()
    path.unlink()
    assert written_by(model, tiny_tokenizer, generated()).read_bytes() == content, "not the same twice"
    monkeypatch.setattr(type(model), "generate", None)
    assert written_by(model, tiny_tokenizer, generated()) == path


def test_another_model_seed_or_wish_is_another_text(model: Any, tiny_tokenizer: Any, tiny_llama: Any) -> None:
    other = tiny_llama(seed=1, vocab_size=len(tiny_tokenizer))
    changes: list[dict[str, Any]] = [{}, {"seed": 1}, {"temperature": 0.5}, {"top_p": 0.5}, {"length": 13}]
    paths = [written_by(model, tiny_tokenizer, generated(**change)) for change in changes]
    paths.append(written_by(other, tiny_tokenizer, generated()))
    assert len({path.read_bytes() for path in paths}) == len(paths)
    drawn = generated(calibration=Calibration(count=6, length=16, seed=7))
    assert written_by(model, tiny_tokenizer, drawn) == paths[0], "the seed of calibration draws, and writes nothing"


def test_a_batch_of_prompts_is_continued_as_each_alone(model: Any, tiny_tokenizer: Any) -> None:
    """So cold that the likeliest token is drawn; the prompts are padded on the left."""
    writer = Writer.of(model, tiny_tokenizer, generated(temperature=1e-4))
    prompts = [(0, 40, 50), (60,), (70, 80, 90, 100, 110)]
    rows = writer._continued(prompts, 0)
    for prompt, row in zip(prompts, rows, strict=True):
        ids = list(prompt)
        for _ in range(12):
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if token in writer.ends:
                break
            ids.append(token)
        assert row == (ids[1:] if prompt[0] == tiny_tokenizer.bos_token_id else ids)


def test_a_text_ends_where_the_model_ends_it(model: Any, tiny_tokenizer: Any) -> None:
    ending = copy.deepcopy(model)
    ending.generation_config.eos_token_id = list(range(3, len(tiny_tokenizer), 2))
    writer = Writer.of(ending, tiny_tokenizer, generated())
    rows = writer._continued([(40,)] * 16, 0)
    assert len({len(row) for row in rows}) > 1
    assert not any(token in writer.ends for row in rows for token in row[1:])
    answers = Writer.of(ending, tiny_tokenizer, generated(chat=True))._continued([(40,)] * 16, 0)
    assert [answer[: len(row)] for answer, row in zip(answers, rows, strict=True)] == rows
    assert all(answer[-1] in writer.ends or len(answer) == 13 for answer in answers), "the end is a part of a chat"


def test_texts_go_on_from_the_prompts_in_turn(model: Any, tiny_tokenizer: Any, prompts: str) -> None:
    begun = ["Once", "It was late at night", "The dog and the fox"]
    texts = texts_in(written_by(model, tiny_tokenizer, generated(prompts=prompts)))
    first = [next(prompt for prompt in begun if text.startswith(prompt)) for text in texts]
    assert set(first[:3]) == set(begun)
    assert first[3:6] == first[: len(first[3:6])]


def test_prompts_of_a_chat_are_set_by_the_template(model: Any, tiny_tokenizer: Any, prompts: str) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = TEMPLATE
    texts = texts_in(written_by(model, tokenizer, generated(prompts=prompts, chat=True)))
    assert any(text.startswith("<s>user: Once<s>assistant: ") for text in texts)
    assert all(text.startswith("<s>user: ") for text in texts)


def test_calibration_is_what_was_written_and_the_test_another_text(
    model: Any, tiny_tokenizer: Any, tested: str
) -> None:
    config = generated(test_task=tested)
    task = build(config, tiny_tokenizer, model)
    assert isinstance(task, TextTask)
    assert task.ids.shape == (6, 16)
    stream = {
        tuple(window)
        for text in texts_in(written_by(model, tiny_tokenizer, config))
        for ids in [tiny_tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
        for window in zip(*(ids[shift:] for shift in range(4)), strict=False)
    }
    assert any(tuple(row[start : start + 4].tolist()) in stream for row in task.ids for start in range(12))
    text = "\n\n".join(document.text for document in documents_of_the_test(corpus_of(tested), None))
    assert task.test.tolist() == tiny_tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    assert task.protocol["test_of"] == "tested"
    assert task.protocol["written"] == written_by(model, tiny_tokenizer, config).stem
    assert build(config, tiny_tokenizer, model).protocol == task.protocol


def test_nothing_is_written_where_no_sequence_is_wanted(
    model: Any, tiny_tokenizer: Any, tested: str, cache: Path
) -> None:
    config = generated(test_task=tested, bos="auto", calibration=Calibration(count=0, length=16, seed=0))
    task = build(config, tiny_tokenizer, model)
    assert isinstance(task, TextTask)
    assert task.ids.shape == (0, 16)
    assert len(task.windows(16, None))
    assert not cache.exists()


def test_a_recovery_trains_on_what_was_written(model: Any, tiny_tokenizer: Any, tested: str) -> None:
    config = generated(test_task=tested, tokens=1500)
    task = build(config, tiny_tokenizer, model)
    material = material_of(Distill(length=16, held_out=4), config, task, tiny_tokenizer, model)
    rows = list(material.training._epoch(0))
    assert len(rows) > 40
    written = "\n\n".join(texts_in(written_by(model, tiny_tokenizer, config)))
    pieces = [tiny_tokenizer.decode(row[4:8]) for row in rows]
    assert sum(piece in written for piece in pieces) > 0.5 * len(pieces)


def test_a_disk_that_keeps_nothing_is_named(model: Any, tiny_tokenizer: Any, cache: Path) -> None:
    cache.write_text("no folder")
    with pytest.raises(UsageError, match="POLICYPRUNE_CACHE: what the model writes cannot be kept there"):
        written_by(model, tiny_tokenizer, generated())


def test_no_room_for_a_text_is_refused(model: Any, tiny_tokenizer: Any, prompts: str) -> None:
    with pytest.raises(UsageError, match=r"task\.prompts: none in .* room for 128 tokens .* 128 positions"):
        written_by(model, tiny_tokenizer, generated(prompts=prompts, length=128))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chat": True}, r"task\.chat: true, but there is nothing to answer"),
        ({"tokens": 95}, r"task\.tokens: 95 are fewer than the 96 that task\.calibration takes"),
        ({"prompts": "a.txt", "test_task": "a.txt"}, r"task\.prompts: 'a\.txt' is the text that is measured"),
        ({"test_task": "news"}, r"task\.test_task: 'news' is none of"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_task(generated(**changes))


def test_perplexity_needs_a_text_that_the_model_did_not_write() -> None:
    with pytest.raises(UsageError, match=r"task\.test_task: null, but perplexity is measured"):
        check_evaluation(Evaluation(name=""), generated())
    check_evaluation(Evaluation(name="", lengths=[]), generated())
    with pytest.raises(UsageError, match=r"evaluation\.texts: 'wikipedia' is the task's own text"):
        check_evaluation(Evaluation(name="", texts=["wikipedia"]), generated(test_task="wikipedia"))
