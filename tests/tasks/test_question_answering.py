"""Long contexts in windows: no answer is lost, and every span points at its answer."""

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encoders import articles, encoder_tokenizer, make_encoder, write_lines
from harness import paragraphs
from policyprune.config.schema import Examples, QuestionAnswering
from policyprune.errors import UsageError
from policyprune.tasks import build
from policyprune.tasks.question_answering import QuestionAnsweringTask, Windows, make_windows

STRIDE = 16


def config(**changes: Any) -> QuestionAnswering:
    values: dict[str, Any] = {
        "name": "squad",
        "max_length": 64,
        "calibration": Examples(None, 0),
        "stride": STRIDE,
    }
    return QuestionAnswering(**(values | changes))


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Any) -> Any:
    return encoder_tokenizer(tiny_tokenizer)


def row(context: str, answer: str | None, start: int | None = None, question: str = " What was it? ") -> dict[str, Any]:
    if answer is None:
        return {"id": "0", "question": question, "context": context, "answers": {"text": [], "answer_start": []}}
    start = context.index(answer) if start is None else start
    return {"id": "0", "question": question, "context": context, "answers": {"text": [answer], "answer_start": [start]}}


def answer_in(windows: Windows, index: int, context: str) -> str | None:
    """The text that the span of a window points at."""
    first, last = windows.spans[index].tolist()
    if (first, last) == (0, 0):
        return None
    left, right = windows.offsets[index][first], windows.offsets[index][last]
    assert left is not None
    assert right is not None
    return context[left[0] : right[1]]


@given(data=st.data(), seed=st.integers(0, 50))
def test_no_answer_is_lost_between_windows(tokenizer: Any, data: st.DataObject, seed: int) -> None:
    context = " ".join(paragraphs(4, seed=seed))
    words = context.split(" ")
    first, count = data.draw(st.integers(0, len(words) - 1)), data.draw(st.integers(1, 4))
    answer = " ".join(words[first : first + count]).rstrip(".")
    while len(tokenizer(answer)["input_ids"]) - 2 > STRIDE - 2:
        count -= 1
        answer = " ".join(words[first : first + count]).rstrip(".")
    start = len(" ".join(words[:first])) + (first > 0)
    assert context[start : start + len(answer)] == answer
    windows = make_windows([row(context, answer, start)], config(), tokenizer)
    assert len(windows.spans) > 3
    answers = [answer_in(windows, index, context) for index in range(len(windows.spans))]
    assert any(text is not None for text in answers)
    for index, text in enumerate(answers):
        if text is not None:
            assert answer in text
            assert len(text) <= len(answer) + 12, "no token too many on either side"
            first_token, last_token = windows.spans[index].tolist()
            left, right = windows.offsets[index][first_token], windows.offsets[index][last_token]
            assert left is not None
            assert right is not None
            assert left[0] <= start < left[1]
            assert right[0] < start + len(answer) <= right[1]


def test_windows_cover_the_context_and_overlap_by_the_stride(tokenizer: Any) -> None:
    context = " ".join(paragraphs(3))
    windows = make_windows([row(context, "Story")], config(), tokenizer)
    spans = [[pair for pair in offsets if pair] for offsets in windows.offsets]
    assert spans[0][0][0] == 0
    assert spans[-1][-1][1] == len(context)
    for left, right in itertools.pairwise(spans):
        assert len(set(left) & set(right)) == STRIDE
    assert int(windows.encoded.lengths.max()) == 64
    assert [len(offsets) for offsets in windows.offsets] == windows.encoded.lengths.tolist()


def test_offsets_are_those_of_the_context_alone(tokenizer: Any) -> None:
    context, question = "The boat was red.", "What was the red boat?"
    windows = make_windows([row(context, "red", question=question)], config(), tokenizer)
    question_tokens = len(tokenizer(question)["input_ids"])
    offsets = windows.offsets[0]
    assert all(pair is None for pair in offsets[:question_tokens])
    assert offsets[-1] is None
    assert all(pair is not None for pair in offsets[question_tokens:-1])
    assert answer_in(windows, 0, context) in ("red", " red")


def test_a_wrong_published_offset_is_found_again(tokenizer: Any) -> None:
    context = "On a day in May the farmer found a wooden boat by the river."
    for start in (0, 3, 36, 500):
        windows = make_windows([row(context, "a wooden boat", start)], config(), tokenizer)
        assert str(answer_in(windows, 0, context)).strip() == "a wooden boat"


def test_a_right_offset_decides_among_equal_texts(tokenizer: Any) -> None:
    context = "The boat met a boat near the boat house."
    starts = [index for index in range(len(context)) if context.startswith("boat", index)]
    firsts = set()
    for start in starts:
        windows = make_windows([row(context, "boat", start)], config(), tokenizer)
        first, _ = windows.spans[0].tolist()
        pair = windows.offsets[0][first]
        assert pair is not None
        assert pair[0] <= start < pair[1]
        firsts.add(first)
    assert len(firsts) == 3


def test_an_answer_that_is_not_there_has_no_span(tokenizer: Any) -> None:
    windows = make_windows([row("A short text.", "elsewhere", 2)], config(), tokenizer)
    assert windows.spans.tolist() == [[0, 0]]


def test_a_question_without_answer_has_no_span_in_any_window(tokenizer: Any) -> None:
    windows = make_windows([row(" ".join(paragraphs(3)), None)], config(), tokenizer)
    assert len(windows.spans) > 2
    assert not windows.spans.any()


def test_windows_belong_to_their_questions(tokenizer: Any) -> None:
    rows = [row("One boat.", "boat"), row(" ".join(paragraphs(3)), "Story"), row("Two bells.", "bells")]
    windows = make_windows(rows, config(), tokenizer)
    question = windows.question.tolist()
    assert question[0] == 0
    assert question[-1] == 2
    assert set(question[1:-1]) == {1}
    chosen = windows.chosen(torch.tensor([len(question) - 1, 0]))
    assert chosen.question.tolist() == [2, 0]
    assert str(answer_in(chosen, 0, "Two bells.")).strip() == "bells"
    assert torch.equal(chosen.encoded.lengths, windows.encoded.lengths[[len(question) - 1, 0]])


def built(tmp_path: Path, tokenizer: Any, train: Any, test: Any, **changes: Any) -> QuestionAnsweringTask:
    files = {}
    for name, content in {"train": train, "validation": test}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        files[name] = str(tmp_path / f"{name}.json")
    task = build(config(data_files=files, **changes), tokenizer)
    assert isinstance(task, QuestionAnsweringTask)
    return task


def test_calibration_windows_hold_their_answers(tmp_path: Path, tokenizer: Any) -> None:
    task = built(tmp_path, tokenizer, articles(6, seed=1), articles(3, seed=2), max_length=40, stride=16)
    spans = task.calibration.spans
    assert len(spans) >= 12
    assert (spans[:, 1] > 0).all()
    assert task.lengths.shape == (len(spans),)
    assert task.protocol["calibration"]["count"] == 12
    questions = task.tests["validation"]
    assert len(questions.rows) == 6
    assert len(questions.windows.spans) > (questions.windows.spans[:, 1] > 0).sum(), "test windows are all kept"


def test_questions_without_answers_are_calibrated_on_where_they_are_allowed(tmp_path: Path, tokenizer: Any) -> None:
    train, test = articles(5, seed=1, none=True), articles(2, seed=2, none=True)
    without = built(tmp_path, tokenizer, train, test)
    allowed = built(tmp_path, tokenizer, train, test, no_answer=True)
    assert (without.calibration.spans[:, 1] > 0).all()
    spans = allowed.calibration.spans
    questions = len(set(allowed.calibration.question.tolist()))
    assert questions == 10
    assert (spans.sum(1) == 0).sum() >= 5
    assert len(set(allowed.calibration.question[spans[:, 1] > 0].tolist())) == 5


def test_a_test_question_is_never_calibrated_on(tmp_path: Path, tokenizer: Any) -> None:
    train = articles(5, seed=1)
    test = copy.deepcopy(train)
    test["data"][0]["paragraphs"] = test["data"][0]["paragraphs"][:2]
    task = built(tmp_path, tokenizer, train, test)
    assert task.protocol["calibration"]["count"] == 6


def test_as_many_test_questions_as_asked_for(tmp_path: Path, tokenizer: Any) -> None:
    task = built(tmp_path, tokenizer, articles(3, seed=1), articles(3, seed=2), max_questions=4)
    questions = task.tests["validation"]
    assert [r["id"] for r in questions.rows] == ["2-0-0", "2-0-1", "2-1-0", "2-1-1"]
    assert set(questions.windows.question.tolist()) == {0, 1, 2, 3}
    assert task.protocol["tests"]["validation"]["questions"] == 4


def test_loss_is_the_mean_over_start_and_end(tmp_path: Path, tokenizer: Any) -> None:
    task = built(tmp_path, tokenizer, articles(4, seed=1), articles(2, seed=2))
    model = make_encoder("QuestionAnswering")
    rows = torch.tensor([5, 0, 3])
    losses = task.loss(model, rows)
    assert (losses.shape, losses.dtype) == ((3,), torch.float32)
    for index, value in zip(rows.tolist(), losses.tolist(), strict=True):
        out = model(**task.inputs(torch.tensor([index])))
        first, last = task.calibration.spans[index].tolist()
        start, end = out.start_logits[0].log_softmax(-1), out.end_logits[0].log_softmax(-1)
        assert value == pytest.approx(-float(start[first] + end[last]) / 2, rel=1e-3, abs=1e-3)


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"query": "What?", "context": "A boat.", "answers": {"text": ["boat"], "answer_start": [2]}}]
    files = {name: str(write_lines(tmp_path / f"{name}.json", [])) for name in ("train", "validation")}
    for name in files.values():
        Path(name).write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(UsageError, match="'question', only query, context, answers"):
        build(config(data_files=files), tokenizer)


def test_too_few_questions_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(UsageError, match=r"^task.calibration.count: 9 is more than the 8 there are"):
        built(tmp_path, tokenizer, articles(4, seed=1), articles(2, seed=2), calibration=Examples(9, 0))


def test_a_tokenizer_without_offsets_is_refused(tokenizer: Any) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UsageError, match="fast tokenizer"):
        build(config(), Slow())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "question", ["What was it that the old farmer found by the river in May?", "What was it? " * 30]
)
def test_a_question_that_leaves_too_little_room_is_cut(tokenizer: Any, question: str) -> None:
    """One long question among thousands must not end a run, neither by an error nor by the tokenizer's panic."""
    context = " ".join(paragraphs(3))
    rows = [row(context, "Story"), row(context, "Story", question=question)]
    windows = make_windows(rows, config(max_length=64, stride=32), tokenizer)
    assert set(windows.question.tolist()) == {0, 1}
    assert int(windows.encoded.lengths.max()) <= 64
    answers = [answer_in(windows, i, context) for i, owner in enumerate(windows.question.tolist()) if owner == 1]
    assert str(answers[0]).strip() == "Story"


def test_questions_without_any_answer_are_refused_and_some_are_told_of(tmp_path: Path, tokenizer: Any) -> None:
    """On 946e1c6 such a split gave 0 without a word."""
    train, test, model = articles(5, seed=1), articles(3, seed=2, none=True), make_encoder("QuestionAnswering")
    task = built(tmp_path, tokenizer, train, test)
    (line,) = task.check(model)
    assert line.startswith("3 of 6 questions of validation have no answer and count as wrong")
    assert built(tmp_path, tokenizer, train, test, no_answer=True).check(model) == []
    for paragraph in test["data"][0]["paragraphs"]:
        for question in paragraph["qas"]:
            del question["answers"]
    with pytest.raises(UsageError, match=r"^task\.test_splits: none of the 6 questions of validation has an answer"):
        built(tmp_path, tokenizer, train, test).check(model)
    with pytest.raises(UsageError, match=r"^task\.calibration_split: no window of the 6 questions of train holds an"):
        built(tmp_path, tokenizer, test, train)
