"""What another process measures of a checkpoint is compared with what was measured in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch

from policyprune.evaluation.measure import Measure
from policyprune.evaluation.reloaded import NotTrustworthyError, agree, check_reloaded

WINDOWS = {"length": 128, "windows": 8, "dtype": "float32"}
EXAMPLES = {"split": "validation", "examples": 200}


def perplexity(value: float | None, **changes: Any) -> Measure:
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
    memory = [perplexity(20.0), perplexity(30.0, length=512)]
    check_reloaded(memory, memory, torch.float32, Path("run/checkpoint"))
    with pytest.raises(NotTrustworthyError, match="'run/checkpoint' is not trustworthy: its perplexity is 31 when"):
        check_reloaded(memory, [memory[0], perplexity(31.0, length=512)], torch.float32, Path("run/checkpoint"))


def test_other_protocols_are_not_compared() -> None:
    check_reloaded([perplexity(20.0)], [perplexity(31.0, length=512)], torch.float32, Path("checkpoint"))
