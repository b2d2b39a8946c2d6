"""Errors name arguments of Python where the caller is Python."""

import pytest

from policyprune.config.python_names import in_python
from policyprune.errors import RunError, UsageError


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        ("budget.keep: 2 is out of range", "keep: 2 is out of range"),
        ("model.source: no family table for 'x'", "model: no family table for 'x'"),
        ("task.calibration.count: 1 sequence, optimizer=ppo needs", "calibration: 1 sequence, optimizer='ppo' needs"),
        ("a.b: 8 is more than the 4 of task.calibration.count", "a.b: 8 is more than the 4 of calibration"),
        ("a: [0.1, 0], and budget.scope=uniform; use [0,0]", "a: [0.1, 0], and scope='uniform'; use [0,0]"),
        ("a: 'budget.keep optimizer=ppo' is not one of b", "a: 'budget.keep optimizer=ppo' is not one of b"),
        ("a: a model's heads, use b=null, not c=2 or d=true", "a: a model's heads, use b=None, not c=2 or d=True"),
        ("a: give pp.FromRun(folder=...)", "a: give pp.FromRun(folder=...)"),
        ("plan: 'x' is no plan", "path: 'x' is no plan"),
        (
            "a: overflow, try model.dtype=float32 model.search_dtype=float32",
            "a: overflow, try a model loaded with dtype='float32'",
        ),
        ("too many masks, use optimizer=ppo", "too many masks, use optimizer='ppo'"),
    ],
)
@pytest.mark.parametrize("kind", [UsageError, RunError])
def test_keys_become_arguments(raised: str, told: str, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught, in_python({"plan": "path"}):
        raise kind(raised)
    assert str(caught.value) == told


def test_a_function_keeps_its_name_its_result_and_other_errors() -> None:
    @in_python()
    def halved(number: int) -> int:
        return 12 // number

    assert (halved.__name__, halved(2)) == ("halved", 6)
    with pytest.raises(ZeroDivisionError):
        halved(0)
