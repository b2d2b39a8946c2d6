"""Widths of blocks by measured losses, against exhaustive search."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.optimizers.levels.levels import Levels
from policyprune.pruning.optimizers.levels.widths import Curve, Widths
from policyprune.pruning.optimizers.problem import Found, Problem
from policyprune.pruning.space import space_of

COUNTS = [(2, 6), (2, 6)]
SCORES = torch.tensor([0.2, 0.9, 1, 2, 3, 4, 5, 6, 0.3, 0.1, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
STRENGTH = torch.tensor([2.0, 0.4, 0.7, 1.5])  # of the blocks
POWER = torch.tensor([1.0, 1.4, 0.8, 1.2])


def problem(
    budget_options: Any, adapter_of: Any, keep: float, name: str, evaluate: Any, scores: Tensor = SCORES
) -> Problem:
    adapter = adapter_of(COUNTS)
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(budget_options(name, keep), adapter, space)
    return Problem(evaluate, space, budget, scores, torch.full((16,), 0.5), torch.ones(20, dtype=torch.long), seed=3)


def loss_of(mask: Tensor) -> Tensor:
    """A power of the summed scores that are gone of each block."""
    gone = torch.stack([part.sum() for part in ((1 - mask.float()) * SCORES).split([2, 6, 2, 6])])
    return (STRENGTH * gone**POWER).sum()


def additive(masks: Tensor, rows: Tensor) -> Tensor:
    return loss_of(masks[0]).expand(len(rows)) + 3.0


def run(problem: Problem, options: Levels, state: Any = None) -> tuple[Found, list[dict[str, Any]]]:
    reports: list[dict[str, Any]] = []
    found = options.search(problem, reports.append, *([state] if state else []))
    return found, reports


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("name", ["rate", "params", "flops"])
def test_losses_that_add_up_as_powers_of_the_error_are_minimised(
    keep: float, name: str, budget_options: Any, synthetic_adapter: Any
) -> None:
    asked = problem(budget_options, synthetic_adapter, keep, name, additive)
    found, _ = run(asked, Levels(rounds=0, widths=[0.75, 0.25]))
    widths = Widths.of(asked.space, SCORES, asked.budget, 24)
    every = itertools.product(*([curve.levels for curve in widths.curves]))
    masks = [widths.mask(list(counts)) for counts in every]
    fitting = [mask for mask in masks if bool((asked.budget.spent(mask) <= asked.budget.pool_limit + 1e-9).all())]
    assert bool((asked.budget.spent(found.mask) <= asked.budget.pool_limit + 1e-9).all())
    best = min(float(loss_of(mask)) for mask in fitting)
    tolerance = 1e-6 if name == "rate" else 0.02  # costs that are rounded to parts of the limit
    assert float(loss_of(found.mask)) <= best * (1 + tolerance)


def test_masks_are_nested_and_one_block_at_a_time(budget_options: Any, synthetic_adapter: Any) -> None:
    seen: list[Tensor] = []

    def watching(masks: Tensor, rows: Tensor) -> Tensor:
        seen.append(masks[0].bool())
        return additive(masks, rows)

    found, reports = run(problem(budget_options, synthetic_adapter, 0.5, "rate", watching), Levels(rounds=0))
    assert bool(seen[0].all())
    assert torch.equal(seen[-1], found.mask)
    assert found.forwards == len(seen) == len(reports)
    for mask in [*seen[1:], found.mask]:
        for own, scores in zip(mask.split([2, 6, 2, 6]), SCORES.split([2, 6, 2, 6]), strict=True):
            kept, gone = scores[own], scores[~own]
            assert not len(kept) or not len(gone) or float(kept.min()) > float(gone.max())
    assert all(sum(not bool(own.all()) for own in mask.split([2, 6, 2, 6])) == 1 for mask in seen[1:-1])


def test_a_round_corrects_what_does_not_add_up(budget_options: Any, synthetic_adapter: Any) -> None:
    """The second FFN alone costs half of the first one, and more than three times as much where heads are gone."""

    def interacting(masks: Tensor, rows: Tensor) -> Tensor:
        before, first, after, second = (float(part.sum()) for part in (1 - masks[0]).split([2, 6, 2, 6]))
        heads = before + after
        return torch.tensor(0.1 * first + 0.05 * second + heads + 0.3 * second * (heads > 0)).expand(len(rows))

    asked = problem(budget_options, synthetic_adapter, 0.4, "rate", interacting, torch.ones(16))
    for rounds, gone in ((0, [1, 6]), (1, [2, 5]), (9, [6, 1])):
        found, _ = run(asked, Levels(rounds=rounds))
        assert [int((~part).sum()) for part in found.mask.split([2, 6, 2, 6])[1::2]] == gone
        assert bool((asked.budget.spent(found.mask) <= asked.budget.pool_limit + 1e-9).all())


def test_it_goes_on_where_it_was_stopped(budget_options: Any, synthetic_adapter: Any) -> None:
    class StopError(Exception):
        pass

    class State:
        saved: dict[str, Any] | None = None
        left = 7

        def load(self) -> dict[str, Any] | None:
            return self.saved

        def save(self, make: Any) -> None:
            self.saved, self.left = make(), self.left - 1
            if not self.left:
                raise StopError

    asked = problem(budget_options, synthetic_adapter, 0.5, "rate", additive)
    whole, rows = run(asked, Levels())
    state = State()
    with pytest.raises(StopError):
        run(asked, Levels(), state)
    state.left = 1000
    found, later = run(asked, Levels(), state)
    assert torch.equal(found.mask, whole.mask)
    assert found.forwards == whole.forwards
    assert later == rows[7:]


@given(seed=st.integers(0, 1000), power=st.floats(0.6, 2.5), scale=st.floats(0.01, 10.0))
def test_a_power_law_is_found_between_and_beyond_its_measurements(seed: int, power: float, scale: float) -> None:
    scores = torch.rand(12, generator=torch.Generator().manual_seed(seed)).double() + 0.01
    curve = Curve(
        scores.argsort(),
        torch.cat([torch.zeros(1).double(), scores.sort().values.cumsum(0)]),
        list(range(13)),
        {},
    )
    truth = {width: scale * float(curve.error[12 - width]) ** power for width in curve.levels}
    curve.measured.update({width: truth[width] for width in (9, 6, 3)})
    for width, loss in zip(curve.levels, curve.losses().tolist(), strict=True):
        assert loss == pytest.approx(truth[width], rel=1e-3, abs=1e-5)
