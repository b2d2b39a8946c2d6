"""Answers decoded from logits, and SQuAD's exact match and F1."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from encoders import articles, encoder_tokenizer
from harness import paragraphs
from policyprune.config.schema import Examples, QuestionAnswering
from policyprune.evaluation.answers import answers, exact_and_f1, normalized
from policyprune.tasks.question_answering import Questions, make_windows
from policyprune.tasks.tables import flatten_squad

CONFIG = QuestionAnswering(
    name="squad",
    source=None,
    subset=None,
    data_files={},
    origin="auto",
    offline_files={},
    rename={},
    keep_rows={},
    calibration_split="train",
    test_splits=["validation"],
    max_length=48,
    calibration=Examples(None, 0),
    stride=16,
    max_answer_length=30,
    no_answer=False,
    no_answer_threshold=0.0,
    max_questions=None,
)


def questions_of(rows: list[dict[str, Any]], plain: Any, config: QuestionAnswering = CONFIG) -> Questions:
    return Questions(rows, make_windows(rows, config, encoder_tokenizer(plain)))


def logits_at(questions: Questions, spans: Tensor, height: float = 10.0) -> tuple[list[Tensor], list[Tensor]]:
    """Start and end logits of each window, as wide as a padded batch, that are high at its span (W, 2)."""
    width = int(questions.windows.encoded.lengths.max()) + 3
    start, end = torch.zeros(len(spans), width), torch.zeros(len(spans), width)
    rows = torch.arange(len(spans))
    start[rows, spans[:, 0]], end[rows, spans[:, 1]] = height, height
    return list(start), list(end)


@pytest.fixture
def two(tiny_tokenizer: Any) -> Questions:
    """Two questions on one short context, a window each."""
    context = "The farmer found a wooden boat by the river."
    rows = [
        {"id": "0", "question": "What?", "context": context, "answers": {"text": [text], "answer_start": [start]}}
        for text, start in (("a wooden boat", 17), ("the river", 34))
    ]
    return questions_of(rows, tiny_tokenizer)


@pytest.mark.parametrize("none", [False, True])
def test_perfect_logits_give_perfect_scores(tiny_tokenizer: Any, none: bool) -> None:
    config = replace(CONFIG, no_answer=none)
    rows = flatten_squad(articles(8, none=none)["data"])
    questions = questions_of(rows, tiny_tokenizer, config)
    assert len(questions.windows.spans) > len(rows)
    start, end = logits_at(questions, questions.windows.spans)
    for index, span in enumerate(questions.windows.spans.tolist()):
        if span == [0, 0]:  # a window without the answer is less sure of that than one with it is of the answer
            start[index] *= 0.5
            end[index] *= 0.5
    texts = answers(questions, start, end, config)
    assert [exact_and_f1(text, row["answers"]["text"]) for text, row in zip(texts, rows, strict=True)] == [
        (1.0, 1.0)
    ] * len(rows)
    assert [bool(text) for text in texts] == [bool(row["answers"]["text"]) for row in rows]


def test_the_best_window_gives_the_answer(tiny_tokenizer: Any) -> None:
    context = " ".join(paragraphs(3))
    row = {"id": "0", "question": "What?", "context": context, "answers": {"text": ["x"], "answer_start": [0]}}
    questions = questions_of([row], tiny_tokenizer)
    count = len(questions.windows.offsets)
    assert count > 3
    for winner in range(count):
        inside = next(token for token, pair in enumerate(questions.windows.offsets[winner]) if pair) + 4
        start, end = logits_at(questions, torch.full((count, 2), inside), height=1.0)
        start[winner] *= 5
        left, right = questions.windows.offsets[winner][inside] or (0, 0)
        assert answers(questions, start, end, CONFIG) == [context[left:right]]


def test_an_answer_never_ends_before_it_starts(two: Questions) -> None:
    spans = two.windows.spans.clone()
    start, end = logits_at(two, spans.flip(1))  # the best start is the last token, the best end the first
    start[0][spans[0, 0]], end[0][spans[0, 1]] = 6, 7
    left, right = two.windows.offsets[0][spans[0, 1]] or (0, 0)
    assert answers(two, start, end, CONFIG)[0] == two.rows[0]["context"][left:right]


def test_an_answer_is_not_longer_than_allowed(two: Questions) -> None:
    spans = two.windows.spans
    length = int(spans[0, 1] - spans[0, 0]) + 1
    assert length > 1
    start, end = logits_at(two, spans)
    exact, shorter = (answers(two, start, end, replace(CONFIG, max_answer_length=n))[0] for n in (length, length - 1))
    assert exact.strip() == "a wooden boat"
    assert shorter.strip() != "a wooden boat"
    assert len(shorter) < len(exact) + 12


def test_an_answer_is_never_taken_from_the_question_or_the_padding(two: Questions) -> None:
    start, end = logits_at(two, two.windows.spans, height=1.0)
    for index, offsets in enumerate(two.windows.offsets):
        for token in range(len(start[index])):
            if token >= len(offsets) or offsets[token] is None:
                start[index][token] = end[index][token] = 50
    assert [text.strip() for text in answers(two, start, end, CONFIG)] == ["a wooden boat", "the river"]


@pytest.mark.parametrize(
    ("empty", "threshold", "answered"), [(5.0, 0.0, True), (25.0, 0.0, False), (25.0, 10.0, True), (5.0, -20.0, False)]
)
def test_no_answer_wins_where_it_scores_higher(two: Questions, empty: float, threshold: float, answered: bool) -> None:
    start, end = logits_at(two, two.windows.spans)
    for x in (*start, *end):
        x[0] = empty / 2
    config = replace(CONFIG, no_answer=True, no_answer_threshold=threshold)
    texts = [text.strip() for text in answers(two, start, end, config)]
    assert texts == (["a wooden boat", "the river"] if answered else ["", ""])
    always = [text.strip() for text in answers(two, start, end, replace(config, no_answer=False))]
    assert always == ["a wooden boat", "the river"]


def test_no_answer_needs_all_windows_to_say_so(tiny_tokenizer: Any) -> None:
    """The score of no answer is the lowest over the windows, as in the published scripts."""
    context = " ".join(paragraphs(3))
    rows = [{"id": "0", "question": "What?", "context": context, "answers": {"text": [], "answer_start": []}}]
    questions = questions_of(rows, tiny_tokenizer)
    spans = torch.tensor([[len(offsets) - 3] * 2 for offsets in questions.windows.offsets])
    start, end = logits_at(questions, spans, height=1.0)
    for x in (*start, *end):
        x[0] = 5
    config = replace(CONFIG, no_answer=True)
    assert answers(questions, start, end, config) == [""]
    start[1][0] = end[1][0] = 0
    assert answers(questions, start, end, config) != [""]


@pytest.mark.parametrize("none", [False, True])
def test_logits_that_are_no_numbers_give_no_answers(two: Questions, none: bool) -> None:
    """Or a broken model would be right about every question without an answer."""
    start, end = logits_at(two, two.windows.spans)
    start[1][:], end[1][:] = torch.nan, torch.nan
    assert answers(two, start, end, replace(CONFIG, no_answer=none)) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat, sat!", "cat sat"),
        ("a an the", ""),
        ("Theatre and another", "theatre and another"),
        ("U.S.", "us"),
        ("rock-and-roll", "rockandroll"),
        ("tab\tand\nline", "tab and line"),
        ("$1,000", "1000"),
        ("naïve café", "naïve café"),
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    assert normalized(text) == expected


@pytest.mark.parametrize(
    ("prediction", "golds", "exact", "f1"),
    [
        ("the wooden boat", ["a wooden boat."], 1.0, 1.0),
        ("wooden boat", ["a wooden boat by the river"], 0.0, 2 * 1.0 * 0.5 / 1.5),
        ("boat boat", ["boat"], 0.0, 2 * 0.5 * 1.0 / 1.5),  # a word counts as often as both have it
        ("river", ["boat", "the River"], 1.0, 1.0),
        ("boat river", ["boat", "river bank water"], 0.0, 2 / 3),
        ("bell", ["boat"], 0.0, 0.0),
        ("", [], 1.0, 1.0),
        ("boat", [], 0.0, 0.0),
        ("", ["boat"], 0.0, 0.0),
        ("", ["the", "boat"], 0.0, 0.0),  # a gold answer of an article alone is none
        ("", ["the"], 1.0, 1.0),
        ("the", ["boat"], 0.0, 0.0),
        ("THE!", [], 1.0, 1.0),
    ],
)
def test_exact_match_and_f1(prediction: str, golds: list[str], exact: float, f1: float) -> None:
    assert exact_and_f1(prediction, golds) == (exact, pytest.approx(f1))
