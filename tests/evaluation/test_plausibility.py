"""What is said about numbers that cannot be right, and that nothing is said about those that can."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from policyprune.evaluation.measures import Measure
from policyprune.evaluation.plausibility import (
    NotTrustworthyError,
    absurd_from_the_start,
    agree,
    check_reloaded,
    doubts,
)
from policyprune.runs.record import ResultRow

WINDOWS = {"length": 128, "windows": 64, "dtype": "float32"}
VALIDATION = {"split": "validation", "examples": 100, "chance": 0.5}


def row(
    subject: str, metric: str, value: float | None, unit: str, protocol: dict[str, Any], stderr: float | None = None
) -> ResultRow:
    return ResultRow(subject=subject, metric=metric, value=value, unit=unit, protocol=protocol, stderr=stderr)


def perplexity(subject: str, value: float | None, stderr: float | None = None) -> ResultRow:
    return row(subject, "perplexity", value, "", dict(WINDOWS), stderr)


def accuracy(subject: str, value: float, stderr: float | None = 0.02) -> ResultRow:
    return row(subject, "accuracy", value, "", dict(VALIDATION), stderr)


@pytest.mark.parametrize("subject", ["dense", "evaluated"])
def test_an_absurd_perplexity_is_said(subject: str) -> None:
    (line,) = doubts([perplexity(subject, 142.17)])
    assert f"the {subject} model's perplexity is 142.2 (128 tokens), absurd for text" in line
    assert "task.bos" in line


@pytest.mark.parametrize(
    "rows",
    [
        [perplexity("dense", 24.1), perplexity("pruned", 300.0)],  # pruned too far, but honest
        [perplexity("dense", None)],  # said where it was measured
        [row("dense", "latency", 1000.0, "ms", {"length": 128})],
        [perplexity("dense", 24.1, 1.5), perplexity("tuned", 23.0, 1.5)],  # within noise
        [perplexity("dense", 24.1), perplexity("tuned", 12.0)],  # nobody knows the noise
        [perplexity("dense", 24.1, 0.1), row("tuned", "perplexity", 12.0, "", {**WINDOWS, "length": 1024}, 0.1)],
        [perplexity("dense", 24.1, 0.1), perplexity("one_shot", 12.0, 0.1)],
        [accuracy("dense", 0.9), accuracy("pruned", 0.5)],
        [accuracy("dense", 0.9), accuracy("pruned", 0.93)],
        [row("dense", "accuracy", 0.4, "", {"split": "validation"}, 0.02)],  # chance is not known
        [row("dense", "cross_entropy", 0.4, "", {}, 0.01), row("tuned", "cross_entropy", 0.2, "", {}, 0.01)],
    ],
)
def test_nothing_is_said_about_what_may_be(rows: list[ResultRow]) -> None:
    assert doubts(rows) == []


def test_a_pruned_model_that_beats_the_dense_one_beyond_noise_is_said() -> None:
    """As reported of Gemma-3-270M without BOS."""
    lines = doubts([perplexity("dense", 142.17, 8.0), perplexity("pruned", 88.11, 5.0)])
    assert len(lines) == 2
    gain = math.log(142.17 / 88.11) / math.hypot(8 / 142.17, 5 / 88.11)
    assert (
        f"pruned model is better than the dense one beyond noise (perplexity 88.11 against 142.2, {gain:.1f}"
        in lines[1]
    )
    (line,) = doubts([accuracy("dense", 0.8), accuracy("tuned", 0.9)])
    assert "accuracy 0.9 against 0.8, 3.5 standard errors" in line
    (line,) = doubts([accuracy("dense", 0.8, 0.0), accuracy("tuned", 0.9, 0.0)])
    assert "inf standard errors" in line


@pytest.mark.parametrize(("value", "stderr", "said"), [(0.5, 0.02, True), (0.51, 0.02, True), (0.53, 0.02, False)])
def test_an_accuracy_at_chance_is_said(value: float, stderr: float, said: bool) -> None:
    lines = doubts([accuracy("dense", value, stderr)])
    assert bool(lines) == said
    assert all("not above chance (0.5000)" in line for line in lines)
    assert doubts([accuracy("pruned", value, stderr)]) == []


@pytest.mark.parametrize(
    ("bos", "without", "with_bos", "said"),
    [("text", 5.0, 5.0, True), ("window", 5.0, 3.2, False), ("text", 3.2, 3.2, False), ("text", math.nan, 3.0, True)],
)
def test_it_is_said_before_the_search_where_bos_was_measured(
    bos: str, without: float, with_bos: float, said: bool
) -> None:
    protocol: dict[str, Any] = {"bos": bos}
    assert not list(absurd_from_the_start(protocol))
    protocol["bos_measured"] = {"loss_with_bos": with_bos, "loss_without_bos": without, "tokens": 1008}
    assert bool(list(absurd_from_the_start(protocol))) == said


EXAMPLES = {"split": "validation", "examples": 200}


def measured(value: float | None, **changes: Any) -> Measure:
    return Measure("perplexity", value, "", {**WINDOWS, **changes})


@pytest.mark.parametrize(
    ("metric", "before", "after", "dtype", "same"),
    [
        ("perplexity", 1516.85, 1559.02, torch.float32, False),  # a class of its own, written as the stock class
        ("perplexity", 1516.85, 1516.86, torch.float32, True),
        ("perplexity", 24.10, 24.13, torch.float32, False),
        ("perplexity", 24.10, 24.13, torch.bfloat16, True),
        ("perplexity", 24.10, 24.90, torch.float16, False),
        ("perplexity", None, None, torch.float32, True),
        ("perplexity", float("inf"), None, torch.float32, True),
        ("perplexity", 24.10, None, torch.float32, False),
        ("perplexity", None, 24.10, torch.float32, False),
        ("cross_entropy", 0.0100, 0.0105, torch.float32, True),
        ("cross_entropy", 0.010, 0.020, torch.float32, False),
        ("accuracy", 0.900, 0.905, torch.float32, True),  # one of 200
        ("accuracy", 0.900, 0.890, torch.float32, False),
        ("accuracy", 0.900, 0.885, torch.bfloat16, True),
        ("accuracy", 0.900, 0.870, torch.bfloat16, False),
        ("matthews", 0.900, 0.885, torch.float32, True),
        ("matthews", 0.900, 0.300, torch.float32, False),
    ],
)
def test_rounding_is_told_from_another_model(
    metric: str, before: float | None, after: float | None, dtype: torch.dtype, same: bool
) -> None:
    one, other = (Measure(metric, value, "", WINDOWS | EXAMPLES) for value in (before, after))
    assert agree(one, other, dtype) == same


def test_the_first_number_that_differs_is_named() -> None:
    memory = [measured(20.0), measured(30.0, length=512)]
    check_reloaded(memory, memory, torch.float32, Path("run/checkpoint"))
    with pytest.raises(NotTrustworthyError, match="'run/checkpoint' is not trustworthy: its perplexity is 31 when"):
        check_reloaded(memory, [memory[0], measured(31.0, length=512)], torch.float32, Path("run/checkpoint"))


def test_other_protocols_are_not_compared() -> None:
    check_reloaded([measured(20.0)], [measured(31.0, length=512)], torch.float32, Path("checkpoint"))
