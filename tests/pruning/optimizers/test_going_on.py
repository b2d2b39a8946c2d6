"""Searches that are interrupted after any step, and losses that are no numbers, on losses of the mask alone."""

import io
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from policyprune.config.schema import Safety
from policyprune.errors import Interrupted
from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.optimizers.estimator import Baseline
from policyprune.pruning.optimizers.evolution import Evolution
from policyprune.pruning.optimizers.greedy import Greedy
from policyprune.pruning.optimizers.gumbel import Gumbel
from policyprune.pruning.optimizers.levels.level_evolution import LevelEvolution
from policyprune.pruning.optimizers.levels.level_policy_gradient import LevelPolicyGradient
from policyprune.pruning.optimizers.levels.level_ppo import LevelPPO
from policyprune.pruning.optimizers.levels.levels import Levels
from policyprune.pruning.optimizers.levels.spdy import SPDY
from policyprune.pruning.optimizers.no_search import OneShot
from policyprune.pruning.optimizers.ppo.ppo import PPO
from policyprune.pruning.optimizers.problem import Found, Problem
from policyprune.pruning.optimizers.straight_through import StraightThrough
from policyprune.pruning.space import space_of
from policyprune.runs.signals import INTERRUPTION, interruptible
from policyprune.runs.state import SearchState, StateFile

STEPS = 9
COUNTS = [(2, 5), (3, 4)]
LENGTHS = torch.tensor([5, 3, 8, 6, 2, 9, 7, 4, 5, 6, 3])
BASELINES = ["none", "moving_average", "leave_one_out", "residual"]


class Stopped(Exception):  # noqa: N818
    """Stands for the end of a process."""


class Memory:
    """A state that saves every `every` steps, and ends the search after `stop` of them."""

    def __init__(self, every: int = 1, stop: int | None = None, saved: bytes | None = None) -> None:
        self.every, self.stop, self.saved, self.steps = every, stop, saved, 0

    def load(self) -> dict[str, Any] | None:
        if self.saved is None:
            return None
        content: dict[str, Any] = torch.load(io.BytesIO(self.saved), weights_only=True)
        return content

    def save(self, make: Callable[[], dict[str, Any]]) -> None:
        self.steps += 1
        if self.steps % self.every == 0:
            buffer = io.BytesIO()
            torch.save(make(), buffer)
            self.saved = buffer.getvalue()
        if self.steps == self.stop:
            raise Stopped


@pytest.fixture(scope="module")
def problem(synthetic_adapter: Any, budget_options: Any) -> Problem:
    adapter = synthetic_adapter(COUNTS)
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(budget_options("flops", 0.6), adapter, space)
    chance = torch.Generator().manual_seed(4)
    importance, taste = torch.rand(space.n, generator=chance), torch.rand(len(LENGTHS), space.n, generator=chance)

    def evaluate(masks: Tensor, rows: Tensor) -> Tensor:
        return ((1 - masks) * (importance + taste[rows])).sum(-1).square() + rows

    def behind(mask: Tensor) -> Tensor:
        return importance.roll(int((mask * torch.arange(space.n)).sum()))

    return Problem(evaluate, space, budget, importance, torch.full((space.n,), 0.6), LENGTHS, seed=2, behind=behind)


def refining(**changes: Any) -> PPO:
    config = PPO(
        stages=0,
        iterations=STEPS,
        episodes=3,
        horizon=2,
        examples=32,
        chunk=2,
        epochs=2,
        learning_rate=0.05,
        sliced=False,
        candidates=3,
    )
    return replace(config, **changes)


def compare_with_interrupted(problem: Problem, config: Any, at: list[int], every: int) -> None:
    """Search once in one go, once interrupted after so many further steps each; expect bit-equality."""
    whole: list[dict[str, Any]] = []
    expected = config.search(problem, whole.append)
    rows: dict[int, dict[str, Any]] = {}
    found, saved = None, None
    for stop in [*at, None]:
        memory = Memory(every, stop, saved)
        torch.rand(5)  # another process has other global random numbers
        try:
            found = config.search(problem, lambda row: rows.update({int(row["step"]): row}), memory)
        except Stopped:
            saved = memory.saved
    assert isinstance(found, Found)
    assert torch.equal(found.mask, expected.mask)
    assert torch.equal(found.probabilities, expected.probabilities)
    assert found.forwards == expected.forwards
    assert found.choice == expected.choice
    assert [rows[step + 1] for step in range(len(whole))] == whole


CUTS = st.lists(st.integers(1, STEPS), min_size=1, max_size=3)


@pytest.mark.parametrize("baseline", BASELINES)
@settings(max_examples=8)
@given(
    at=CUTS,
    every=st.integers(1, 3),
    mask_per=st.sampled_from(["sequence", "batch"]),
    window_update=st.sampled_from(["after_use", "before_use"]),
    progressive=st.booleans(),
)
def test_the_policy_gradient_goes_on_bit_for_bit(
    problem: Problem, search_options: Any, baseline: str, at: list[int], every: int, **changes: Any
) -> None:
    config = search_options(steps=STEPS, batch_size=4, masks=3, baseline=baseline, learning_rate=0.05, **changes)
    compare_with_interrupted(problem, config, at, every)


@settings(max_examples=6)
@given(at=CUTS, every=st.integers(1, 3))
def test_ppo_goes_on_bit_for_bit(problem: Problem, at: list[int], every: int) -> None:
    compare_with_interrupted(problem, refining(), at, every)


@settings(max_examples=4)
@given(at=CUTS, every=st.integers(1, 3))
def test_ppo_with_a_judge_goes_on_bit_for_bit(problem: Problem, at: list[int], every: int) -> None:
    def judge(mask: Tensor, rows: Tensor, tuned: bool) -> Tensor:
        losses = problem.evaluate(mask.float()[None], rows).double()
        return torch.stack([losses * (0.3 if tuned else 1.0), losses], 1)

    compare_with_interrupted(replace(problem, judge=judge), refining(), at, every)


OTHERS = [
    Evolution(steps=STEPS, population=5, parents=2, mutation=0.2, batch_size=4, final_batches=2),
    Gumbel(steps=STEPS, batch_size=4, learning_rate=0.05),
    Greedy(sequences=8, batch_size=4),
    StraightThrough(steps=STEPS, batch_size=4, backward_batch=3, attention_rate=0.5),
    Levels(rounds=1),
    LevelEvolution(steps=STEPS, offspring=4, survivors=[2], sequences=[2, 5]),
    LevelEvolution(steps=3, rounds=3, levels=2, offspring=4, survivors=[2], sequences=[2, 5]),
    SPDY(steps=STEPS - 1, mutation=0.5, sequences=5),
    LevelPolicyGradient(steps=6, widths=[], masks=3, first_sequences=2, sequences=5, final_sequences=8),
    LevelPPO(steps=6, widths=[], masks=3, first_sequences=2, sequences=5, final_sequences=8),
]


@pytest.mark.parametrize("config", OTHERS, ids=lambda config: config.name)
@settings(max_examples=4)
@given(at=st.lists(st.integers(1, 3), min_size=1, max_size=2), every=st.integers(1, 2))
def test_others_go_on_bit_for_bit(problem: Problem, config: Any, at: list[int], every: int) -> None:
    compare_with_interrupted(problem, config, at, every)


# Losses that are no numbers

BAD = st.sampled_from([float("nan"), float("inf"), -float("inf")])


@given(baseline=st.sampled_from(BASELINES), bad=BAD, where=st.integers(0, 11), seed=st.integers(0, 99))
def test_a_mask_without_a_loss_says_nothing(
    search_options: Any, baseline: str, bad: float, where: int, seed: int
) -> None:
    losses = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1
    dense = torch.rand(4, dtype=torch.float64) if baseline == "residual" else None
    losses.view(-1)[where] = bad
    average = torch.tensor(1.5, dtype=torch.float64)
    got = Baseline(baseline, 5, "after_use", average)
    advantages = got.advantages(losses, dense)
    assert advantages.isfinite().all()
    assert advantages.view(-1)[where] == 0
    values = losses if dense is None else losses - dense
    others = values.view(-1)[torch.arange(12) != where]
    if baseline == "moving_average":
        assert got.average is not None
        assert float(got.average) == pytest.approx(0.8 * 1.5 + 0.2 * float(others.mean()))
    if baseline == "residual":
        assert float(advantages.sum()) == pytest.approx(0, abs=1e-9)
        scale = 12 / 11
        assert advantages.view(-1)[torch.arange(12) != where].tolist() == pytest.approx(
            ((others - others.mean()) * scale).tolist()
        )


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_step_without_any_loss_changes_nothing(problem: Problem, search_options: Any, baseline: str) -> None:
    broken = replace(problem, evaluate=lambda masks, rows: torch.full((len(rows),), torch.nan))
    rows: list[dict[str, Any]] = []
    config = search_options(steps=3, batch_size=4, masks=2, baseline=baseline)
    start = problem.start * 0.9  # inside the budget, so that the projection does not move it
    found = config.search(replace(broken, start=start), rows.append)
    torch.testing.assert_close(found.probabilities, start)
    assert [int(row["skipped"]) for row in rows] == [8, 8, 8]


def sometimes_nan(problem: Problem) -> Problem:
    """Masks that drop the most important unit have no loss."""
    unit = int(problem.importance.argmax())
    return replace(
        problem,
        evaluate=lambda masks, rows: torch.where(masks[:, unit] > 0, problem.evaluate(masks, rows), torch.nan),
    )


@pytest.mark.parametrize("mask_per", ["sequence", "batch"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_the_search_goes_on_past_masks_without_a_loss(
    problem: Problem, search_options: Any, baseline: str, mask_per: str
) -> None:
    config = search_options(steps=40, batch_size=4, masks=4, baseline=baseline, mask_per=mask_per)
    if baseline in ("none", "moving_average"):
        config = replace(config, learning_rate=1e-4)
    rows: list[dict[str, Any]] = []
    found = config.search(sometimes_nan(problem), rows.append)
    assert found.probabilities.isfinite().all()
    assert sum(int(row["skipped"]) for row in rows) > 0
    samples = 4 if mask_per == "batch" else 16
    assert all(bool(torch.isfinite(row["loss"])) == (row["skipped"] < samples) for row in rows)


def test_ppo_never_chooses_a_mask_without_a_loss(problem: Problem) -> None:
    unit = int(problem.importance.argmax())
    rows: list[dict[str, Any]] = []
    found = refining(entropy=0.5).search(sometimes_nan(problem), rows.append)
    assert found.mask[unit]
    assert found.probabilities.isfinite().all()
    assert sum(row["skipped"] for row in rows) > 0


def test_ppo_survives_losses_that_are_never_numbers(problem: Problem) -> None:
    broken = replace(problem, evaluate=lambda masks, rows: torch.full((len(rows),), torch.nan))
    rows: list[dict[str, Any]] = []
    found = refining().search(broken, rows.append)
    assert bool((problem.budget.spent(found.mask) <= problem.budget.pool_limit).all())
    assert [row["skipped"] for row in rows] == [6] * STEPS


def test_going_on_where_losses_round_differently_ends_well(problem: Problem) -> None:
    """No loss that was computed on another machine, here of half the size, is compared with one of this machine."""
    memory = Memory(stop=STEPS)
    with pytest.raises(Stopped):
        refining().search(problem, lambda told: None, memory)
    other = replace(problem, evaluate=lambda masks, rows: problem.evaluate(masks, rows) * 2)
    found = refining().search(other, lambda told: None, Memory(saved=memory.saved))
    assert bool(found.mask.any())


STEP_BY_STEP = [*OTHERS, refining()]


@pytest.mark.parametrize("config", STEP_BY_STEP, ids=lambda config: config.name)
def test_a_signal_waits_for_the_save_of_every_search_that_goes_step_by_step(
    problem: Problem, config: Any, tmp_path: Path
) -> None:
    expected = config.search(problem, lambda told: None)
    calls = 0

    def signalled(masks: Tensor, rows: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:  # in the middle of a step
            os.kill(os.getpid(), signal.SIGTERM)
        return problem.evaluate(masks, rows)

    def run(own: Problem) -> Found:
        file = StateFile(tmp_path / "search.state", {"config": "abc"})
        state = SearchState(file=file, safety=Safety(save_seconds=None, max_skipped=9), before=file.read(), around=dict)
        with interruptible(), state as saving:
            found: Found = config.search(own, lambda told: None, saving)
            return found

    with pytest.raises(Interrupted):
        run(replace(problem, evaluate=signalled))
    assert (tmp_path / "search.state").exists(), "it ended before it saved"
    assert not INTERRUPTION.waits
    assert torch.equal(run(problem).mask, expected.mask)


@pytest.mark.parametrize("config", STEP_BY_STEP, ids=lambda config: config.name)
def test_the_number_of_steps_is_declared_by_the_config(problem: Problem, config: Any) -> None:
    told: list[dict[str, Any]] = []
    config.search(problem, told.append)
    assert config.length in (None, len(told))
    assert OneShot().length is None
