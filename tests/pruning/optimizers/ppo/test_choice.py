"""Which mask a search begins with and ends with, on losses that are functions of the mask alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from policyprune.pruning.budget.budget import Budget
from policyprune.pruning.optimizers.ppo.choice import Starts, advantage, beats, best_of, choose
from policyprune.pruning.optimizers.ppo.held_out_losses import HeldOutLosses
from policyprune.pruning.optimizers.ppo.ppo import PPO
from policyprune.pruning.optimizers.problem import Found, Judge, Problem
from policyprune.pruning.space import Group, Space

N, SEQUENCES = 12, 64
ORDER = torch.arange(N, 0, -1).float()  # importance: the starts keep the first half of the units
START = torch.arange(N) < N // 2
CONFIG = PPO(stages=0, iterations=12, episodes=16, horizon=2, examples=32, chunk=1, learning_rate=0.05, entropy=0.1)


def twice(judge: Judge) -> Judge:
    """The same number for divergence and loss."""
    return lambda mask, rows, tuned: torch.stack([judge(mask, rows, tuned)] * 2, 1)


def problem_of(loss: Callable[[Tensor, Tensor], Tensor], judge: Judge | None = None, seed: int = 0) -> Problem:
    judge = judge and twice(judge)
    space = Space((Group(0, "attention", N),))
    zero, limit = torch.zeros(N, dtype=torch.long), torch.tensor([N / 2], dtype=torch.float64)
    cost = torch.ones(N, dtype=torch.float64)
    budget = Budget(cost=cost, segment=zero, limit=limit, pool=zero, pool_limit=limit, keep=0.5)
    return Problem(loss, space, budget, ORDER, ORDER, torch.ones(SEQUENCES, dtype=torch.long), seed, judge=judge)


def searched(problem: Problem) -> Found:
    rows: list[Any] = []
    return CONFIG.search(problem, rows.append)


def last_units_help(masks: Tensor, rows: Tensor) -> Tensor:
    """A loss that wants just what the starts do not keep."""
    return 3 - (masks.float() * ~START).sum(1) / 2 + 0 * rows


def far_from_start(mask: Tensor, rows: Tensor, tuned: bool) -> Tensor:
    return (mask.double() - START.double()).abs().sum() + 0 * rows.double()


def test_a_search_whose_loss_misleads_falls_back_to_the_start() -> None:
    """Rewards and held-out losses alike promise much, what the finished model predicts gets worse."""
    found = searched(problem_of(last_units_help, far_from_start))
    assert torch.equal(found.mask, START)
    assert found.choice["chosen"] == found.choice["start"] == "fisher_search"
    assert found.choice["gain"]["divergence"] < 0
    assert found.choice["held_out"]["search"]["loss"] > found.choice["held_out"]["fisher_search"]["loss"] == 0


def test_a_search_that_its_judge_agrees_with_is_kept() -> None:
    def near_the_rest(mask: Tensor, rows: Tensor, tuned: bool) -> Tensor:
        return N - far_from_start(mask, rows, tuned)

    found = searched(problem_of(last_units_help, near_the_rest))
    assert found.choice["chosen"] == "search"
    assert found.choice["gain"]["divergence"] > found.choice["standard_error"]["divergence"]
    assert bool((found.mask & ~START).any())


@pytest.mark.parametrize("seed", range(3))
def test_what_helps_the_rewarded_examples_alone_is_not_kept(seed: int) -> None:
    """The examples held out like the start; on the others the search has much to gain."""
    generator = torch.Generator().manual_seed(seed)
    losses = HeldOutLosses(problem_of(last_units_help), CONFIG.held_out, CONFIG.examples, generator)
    held_out = torch.zeros(SEQUENCES, dtype=torch.bool)
    held_out[torch.cat(losses._held_out)] = True
    sign = torch.where(held_out, -1.0, 1.0)
    found = searched(problem_of(lambda masks, rows: 3 - sign[rows] * (masks.float() * ~START).sum(1) / 2, seed=seed))
    assert torch.equal(found.mask, START)


def choice_of(starts: dict[str, Tensor], finalists: list[Tensor], judge: Judge) -> tuple[Tensor, dict[str, Any]]:
    losses = HeldOutLosses(problem_of(last_units_help, judge), 0.25, 32, torch.Generator().manual_seed(0))
    return choose(Starts.of(starts, losses), finalists, losses)


def unit(index: int) -> Tensor:
    return torch.arange(N) == index


@pytest.mark.parametrize(("lower", "chosen"), [(0.1, "a"), (0.4, "search")])
def test_the_search_has_to_be_better_by_more_than_a_standard_error(lower: float, chosen: str) -> None:
    """16 examples are held out; on half of them a mask is better by 1 more than on the others: an error of 0.258."""

    def judge(mask: Tensor, rows: Tensor, tuned: bool) -> Tensor:
        noise = torch.arange(len(rows)).double() % 2 * 2 - 1
        return 5 - (lower + noise) * bool(mask[1]) + 0 * rows

    mask, record = choice_of({"a": unit(0)}, [unit(1)], judge)
    assert record["chosen"] == chosen
    assert record["examples"] == 16
    assert record["gain"]["divergence"] == pytest.approx(lower)
    assert record["standard_error"]["divergence"] == pytest.approx((16 / 15) ** 0.5 / 4)
    assert bool(mask[1]) == (chosen == "search")


def test_starts_and_the_challenger_are_judged_tuned_and_finalists_are_not() -> None:
    calls: list[tuple[int, bool]] = []

    def judge(mask: Tensor, rows: Tensor, tuned: bool) -> Tensor:
        index = int(mask.int().argmax())
        calls.append((index, tuned))
        return rows * 0.0 + {0: 3, 1: 2, 2: 9, 3: 1, 4: 8}[index] - (7 if tuned and index == 4 else 0)

    mask, record = choice_of({"a": unit(0), "b": unit(1)}, [unit(2), unit(3), unit(4)], judge)
    assert calls == [(0, True), (1, True), (2, False), (3, False), (4, False), (3, True)]
    assert record["start"] == "b"
    assert {name: value["loss"] for name, value in record["held_out"].items()} == {"a": 3, "b": 2, "search": 1}
    assert torch.equal(mask, unit(3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_mask_without_a_finite_judgement_is_never_chosen_over_one_with(bad: float) -> None:
    good = torch.full((4,), 2.0, dtype=torch.float64)
    broken = torch.tensor([0.0, 0.0, bad, 0.0], dtype=torch.float64)
    assert advantage(good, broken) == (-torch.inf, 0)
    assert advantage(broken, good) == (torch.inf, 0)
    assert advantage(broken, broken)[0] < 0

    def judge(mask: Tensor, rows: Tensor, tuned: bool) -> Tensor:
        return rows * (bad if mask[1] else 1.0) + (bad if mask[1] else 0.0)

    for starts, finalist in ([0], 1), ([1], 0), ([1, 0], 1):
        mask, _ = choice_of({str(index): unit(index) for index in starts}, [unit(finalist)], judge)
        assert torch.equal(mask, unit(0))


def test_one_example_says_nothing() -> None:
    gain, error = advantage(torch.ones(1).double(), torch.zeros(1).double())
    assert not gain > error


def test_the_search_begins_with_the_start_that_is_judged_best() -> None:
    """The loss prefers the other one."""
    begins: list[Tensor] = []

    def loss(masks: Tensor, rows: Tensor) -> Tensor:
        begins.append(masks[0].bool())
        return 1 - (masks.float() @ ORDER) / ORDER.sum() + 0 * rows

    def judge(mask: Tensor, rows: Tensor, tuned: bool) -> Tensor:
        return 100 - far_from_start(mask, rows, tuned)

    gradients = torch.diag(ORDER.flip(0))
    problem = replace(problem_of(loss, judge), gradients=lambda: gradients)
    found = searched(problem)
    assert found.choice["start"] == "rearranged"
    assert torch.equal(begins[0], ~START)


def test_the_same_seed_chooses_the_same() -> None:
    def judge(mask: Tensor, rows: Tensor, tuned: bool) -> Tensor:
        return last_units_help(mask[None], rows).double() + (rows % 5) * mask.double().std()

    first, second = (searched(problem_of(last_units_help, judge)) for _ in range(2))
    assert torch.equal(first.mask, second.mask)
    assert first.choice == second.choice


def judged(divergence: float, loss: float, noise: float = 0.0) -> Tensor:
    """16 examples; half of the divergences are higher by `noise`, half lower."""
    sign = torch.arange(16).double() % 2 * 2 - 1
    return torch.stack([divergence + noise * sign, torch.full((16,), loss).double()], 1)


def test_the_loss_decides_between_masks_that_the_divergence_cannot_tell_apart() -> None:
    noisy = judged(1.1, 2.0, noise=1.0)  # a standard error of 0.26
    assert best_of([judged(1.0, 3.0), noisy, judged(1.2, 1.0)]) == 1
    assert best_of([judged(1.0, 3.0), judged(1.1, 2.0)]) == 0, "without noise it can"
    assert best_of([judged(float("nan"), 0.0), judged(1.0, 3.0)]) == 1


@pytest.mark.parametrize(
    ("challenger", "wins"),
    [
        (judged(0.5, 9.0), True),  # surely better predictions
        (judged(1.0, 1.0), True),  # the same predictions, more surely
        (judged(0.9, 1.0, noise=1.0), True),
        (judged(1.01, 1.0, noise=1.0), False),  # a lower loss never makes up for worse predictions
        (judged(0.9, 2.0, noise=1.0), False),
        (judged(1.0, 2.0), False),
    ],
)
def test_what_beats_a_start_of_divergence_1_and_loss_2(challenger: Tensor, wins: bool) -> None:
    assert beats(challenger, judged(1.0, 2.0)) == wins
