"""PPO on losses that are functions of the mask alone: what it is made of, and what it finds."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from policyprune.pruning.budget.budget import Budget, make_budget
from policyprune.pruning.budget.selection import select
from policyprune.pruning.optimizers.ppo.actor_critic import ActorCritic
from policyprune.pruning.optimizers.ppo.decisions import make_decisions
from policyprune.pruning.optimizers.ppo.episodes import clipped_surrogate, generalised_advantages
from policyprune.pruning.optimizers.ppo.held_out_losses import HeldOutLosses, in_stages, warm_starts
from policyprune.pruning.optimizers.ppo.ppo import PPO
from policyprune.pruning.optimizers.problem import Found, Problem
from policyprune.pruning.space import Group, Space, space_of

CONFIG = PPO(
    stages=0,
    iterations=40,
    episodes=16,
    horizon=2,
    examples=64,
    held_out=0.25,
    chunk=4,
    epochs=4,
    clip=0.2,
    gae_lambda=0.95,
    discount=1.0,
    entropy=0.003,
    kl_stop=0.02,
    learning_rate=0.02,
    sliced=False,
    candidates=8,
)
SEEDS = st.integers(0, 1000)


def uniform(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def run(problem: Problem, **changes: Any) -> tuple[Found, list[dict[str, Any]]]:
    reports: list[dict[str, Any]] = []
    return replace(CONFIG, **changes).search(problem, reports.append), reports


def starts_of(problem: Problem, budget: Budget) -> list[Tensor]:
    losses = HeldOutLosses(problem, CONFIG.held_out, CONFIG.examples, torch.Generator())
    return list(warm_starts(problem, budget, losses, CONFIG.stages).values())


# What it is made of


@given(
    horizon=st.integers(1, 5),
    episodes=st.integers(1, 4),
    discount=st.floats(0.1, 1),
    gae_lambda=st.floats(0, 1),
    seed=SEEDS,
)
def test_advantages_are_the_discounted_sums_of_errors(
    horizon: int, episodes: int, discount: float, gae_lambda: float, seed: int
) -> None:
    rewards, values = uniform(horizon, episodes, seed=seed), uniform(horizon, episodes, seed=seed + 1)
    advantages, returns = generalised_advantages(rewards, values, discount, gae_lambda)
    for step, episode in product(range(horizon), range(episodes)):
        expected = 0.0
        for later in range(step, horizon):
            after = float(values[later + 1, episode]) if later + 1 < horizon else 0.0
            error = float(rewards[later, episode]) + discount * after - float(values[later, episode])
            expected += (discount * gae_lambda) ** (later - step) * error
        assert float(advantages[step, episode]) == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(returns, advantages + values)


def test_with_lambda_one_returns_are_the_rewards_to_come() -> None:
    rewards, values = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[0.3], [9.0], [-2.0]])
    _, returns = generalised_advantages(rewards, values, 1.0, 1.0)
    assert returns.flatten().tolist() == pytest.approx([7.0, 6.0, 4.0], abs=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.0, 2.0, 2.0, 2.0),
        (1.1, 2.0, 2.2, 2.0),
        (1.5, 2.0, 2.4, 0.0),  # good already: no more of it
        (0.5, 2.0, 1.0, 2.0),  # good and made rare: bring it back
        (0.9, -2.0, -1.8, -2.0),
        (0.5, -2.0, -1.6, 0.0),  # bad and rare already
        (1.5, -2.0, -3.0, -2.0),  # bad and made frequent
    ],
)
def test_the_surrogate_is_clipped_where_the_policy_has_gone_far(
    ratio: float, advantage: float, value: float, slope: float
) -> None:
    x = torch.tensor(ratio, requires_grad=True)
    found = clipped_surrogate(x, torch.tensor(advantage), 0.2)
    (gradient,) = torch.autograd.grad(found, x)
    assert float(found.detach()) == pytest.approx(value, abs=1e-6)
    assert float(gradient) == pytest.approx(slope, abs=1e-6)


@given(
    counts=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 20)), min_size=1, max_size=3),
    name=st.sampled_from(["flops", "rate"]),
    keep=st.floats(0.1, 0.9),
    seed=SEEDS,
)
def test_logits_are_shifted_so_that_the_expected_cost_is_the_budget(
    synthetic_adapter: Any, budget_options: Any, counts: Any, name: str, keep: float, seed: int
) -> None:
    adapter = synthetic_adapter(counts)
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(budget_options(name, keep), adapter, space)
    decisions = make_decisions(uniform(space.n, seed=seed), space, budget, chunk=3)
    torch.manual_seed(seed)
    agent = ActorCritic(decisions, 3 * torch.randn(decisions.count), horizon=2)
    for parameter in agent.parameters():
        parameter.data += torch.randn_like(parameter)
    share, step = uniform(5, decisions.count, seed=seed + 1), torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0])
    logits = agent.logits(share, step)
    assert logits.shape == (5, decisions.count)
    assert agent.value(share, step).shape == (5,)
    expected = (torch.sigmoid(logits.double()) * decisions.cost).sum(1)
    limit = float(budget.pool_limit.sum())
    if limit > 0:
        assert expected.tolist() == pytest.approx([limit] * 5, rel=1e-3)


def test_every_part_of_actor_and_critic_learns(synthetic_adapter: Any, budget_options: Any) -> None:
    adapter = synthetic_adapter([(2, 6), (2, 6)])
    space = space_of(adapter, ["attention", "ffn"])
    decisions = make_decisions(torch.rand(space.n), space, make_budget(budget_options("flops", 0.5), adapter, space), 2)
    agent = ActorCritic(decisions, torch.zeros(decisions.count), horizon=2)
    for parameter in agent.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    share, step = torch.rand(3, decisions.count), torch.tensor([0.0, 1.0, 1.0])
    weights = torch.randn(3, decisions.count)
    loss = (agent.logits(share, step) * weights).sum() + (agent.value(share, step) * torch.randn(3)).sum()
    loss.backward()
    for name, parameter in agent.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


# What it finds

LAYERS, HEADS = 4, 4
ALONE = torch.tensor([0.30, 0.31, 0.32, 0.33, 0.34, 0.35, 0.36, 0.37])  # units 0 and 1 of each layer
TOGETHER = torch.tensor([1.0, 1.1, 1.2, 1.3])  # unit 2 of a layer with unit 3 of the next
FLAT = torch.ones(64, dtype=torch.long)


def stuck_space() -> Space:
    return Space(tuple(Group(layer, "attention", HEADS) for layer in range(LAYERS)))


def roles(masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of masks (B, 16): the units that count alone (B, 8), and both sides of the pairs (B, 4)."""
    by_layer = masks.view(len(masks), LAYERS, HEADS)
    return by_layer[..., :2].flatten(1), by_layer[..., 2], by_layer[..., 3].roll(-1, 1)


def with_pairs(masks: Tensor) -> Tensor:
    """Half of the units are worth something alone; a pair is worth more than two of them, half a pair nothing."""
    alone, left, right = roles(masks)
    return 8 - alone @ ALONE - (left * right) @ TOGETHER


def stuck_gradients() -> Tensor:
    """Each unit by itself, those that count alone the most."""
    alone, _, _ = roles(torch.eye(LAYERS * HEADS))
    size = torch.where(alone.any(1), 1.0, 0.1) + 0.01 * torch.arange(LAYERS * HEADS) / (LAYERS * HEADS)
    return torch.diag(size)


def stuck_problem(seed: int = 0, loss: Callable[[Tensor], Tensor] = with_pairs) -> Problem:
    space = stuck_space()
    zero = torch.zeros(space.n, dtype=torch.long)
    limit = torch.tensor([space.n / 2], dtype=torch.float64)
    cost = torch.ones(space.n, dtype=torch.float64)
    budget = Budget(cost=cost, segment=zero, limit=limit, pool=zero, pool_limit=limit, keep=0.5)
    gradients = stuck_gradients()
    importance = gradients.square().mean(0)

    def evaluate(masks: Tensor, rows: Tensor) -> Tensor:
        return loss(masks) + (rows % 3).float()

    return Problem(evaluate, space, budget, importance, importance, FLAT, seed, lambda: gradients)


def all_masks(n: int, keep: int) -> Tensor:
    kept = torch.tensor(list(combinations(range(n), keep)))
    return torch.zeros(len(kept), n).scatter_(1, kept, 1.0)


def swapped(mask: Tensor) -> Tensor:
    """All masks that differ from this one by one swap: (S, n)."""
    found = []
    for new, old in product((~mask).nonzero().flatten().tolist(), mask.nonzero().flatten().tolist()):
        other = mask.float().clone()
        other[new], other[old] = 1, 0
        found.append(other)
    return torch.stack(found)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_leaves_the_optimum_that_single_swaps_are_stuck_in(seed: int) -> None:
    problem = stuck_problem(seed)
    starts = starts_of(problem, problem.budget)
    here = min(float(with_pairs(mask.float()[None])) for mask in starts)
    start = min(starts, key=lambda mask: float(with_pairs(mask.float()[None])))
    every = all_masks(problem.space.n, problem.space.n // 2)
    losses = with_pairs(every)
    best = every[losses.argmin()].bool()
    assert bool((with_pairs(swapped(start)) > here + 0.1).all()), "every single swap is worse"
    assert float(losses.min()) < here - 1, "and yet there is a far better mask"
    assert int((best & ~start).sum()) >= 6
    found, _ = run(problem, chunk=1, iterations=40, episodes=32, entropy=0.3)
    assert torch.equal(found.mask, best)


def test_it_trades_heads_for_channels_where_neither_kind_alone_helps(
    synthetic_adapter: Any, budget_options: Any
) -> None:
    """A head costs about eight channels here, and the channels of a layer are worth something only all together."""
    adapter = synthetic_adapter([(2, 8), (2, 8)])
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(budget_options("flops", 0.55), adapter, space)
    heads = torch.tensor([group.kind == "attention" for group in space.groups])[space.group_of]

    def loss(masks: Tensor) -> Tensor:
        views = space.views(masks)
        whole = views[0, "ffn"].prod(-1) + 1.2 * views[1, "ffn"].prod(-1)
        return 9 - masks[:, heads].sum(1) - 2 * whole - 0.05 * masks[:, ~heads].sum(1)

    gradients = torch.diag(torch.where(heads, 5.0, 0.01) + 0.001 * torch.arange(space.n))
    lengths = torch.ones(32, dtype=torch.long)
    importance = gradients.square().mean(0)
    problem = Problem(
        lambda masks, rows: loss(masks) + 0 * rows, space, budget, importance, importance, lengths, 0, lambda: gradients
    )
    free = torch.tensor(list(product([0.0, 1.0], repeat=4)))
    every = []
    for kept, a, b in product(free, range(9), range(9)):
        mask = torch.zeros(space.n)
        mask[heads] = kept
        for count, view in zip((a, b), (space.views(mask)[0, "ffn"], space.views(mask)[1, "ffn"]), strict=True):
            view[8 - count :] = 1
        every.append(mask)
    masks = torch.stack(every)
    masks = masks[(masks.double() @ budget.cost) <= float(budget.pool_limit) + 1e-6]
    best = float(loss(masks).min())
    before = min(float(loss(mask.float()[None])) for mask in starts_of(problem, budget))
    assert best < before - 0.5
    found, _ = run(problem, chunk=8, iterations=40)
    assert float(loss(found.mask.float()[None])) == pytest.approx(best, abs=1e-5)
    assert float(budget.spent(found.mask)) <= float(budget.pool_limit) + 1e-6


def twins(masks: Tensor) -> Tensor:
    """Units 0 and 1 do the same and one of them is needed; the others matter a little, each in its own way."""
    alone = torch.arange(2, masks.shape[1]) / 10 + 0.1
    return 5 * (1 - masks[:, 0]) * (1 - masks[:, 1]) + ((1 - masks[:, 2:]) * alone).sum(1)


def test_stages_keep_one_of_two_units_that_stand_in_for_each_other() -> None:
    problem = stuck_problem(loss=twins)
    ones = torch.ones(1, problem.space.n, requires_grad=True)
    (gradient,) = torch.autograd.grad(twins(ones).sum(), ones)
    at_once = select(gradient[0].square(), problem.budget)
    assert not at_once[0], "seen from the dense model neither is worth anything"
    assert not at_once[1]
    losses = HeldOutLosses(problem, CONFIG.held_out, CONFIG.examples, torch.Generator().manual_seed(0))
    in_steps = in_stages(problem, problem.budget, losses, problem.space.n // 2)
    assert int(in_steps[:2].sum()) == 1
    assert float(problem.budget.spent(in_steps)) <= float(problem.budget.pool_limit) + 1e-6


@pytest.mark.parametrize("stages", [1, 3, 50])
def test_stages_end_within_the_budget(stages: int) -> None:
    problem = stuck_problem()
    losses = HeldOutLosses(problem, CONFIG.held_out, CONFIG.examples, torch.Generator().manual_seed(0))
    mask = in_stages(problem, problem.budget, losses, stages)
    assert int(mask.sum()) == problem.space.n // 2


def test_gradients_that_are_no_numbers_leave_a_mask_within_the_budget() -> None:
    problem = stuck_problem(loss=lambda masks: masks.sum(1) * torch.nan)
    losses = HeldOutLosses(problem, CONFIG.held_out, CONFIG.examples, torch.Generator().manual_seed(0))
    assert int(in_stages(problem, problem.budget, losses, 3).sum()) == problem.space.n // 2


def noisy_problem(seed: int) -> Problem:
    """Examples disagree strongly about the units, so that what helps some need not help the others."""
    problem = stuck_problem(seed)
    taste = torch.randn(64, problem.space.n, generator=torch.Generator().manual_seed(seed + 50))
    return replace(problem, evaluate=lambda masks, rows: with_pairs(masks) + (masks @ taste[rows].T).flatten())


@pytest.mark.parametrize("seed", range(4))
def test_it_is_never_worse_than_the_warm_starts_on_the_examples_held_out(seed: int) -> None:
    problem = noisy_problem(seed)
    config = replace(CONFIG, iterations=6, chunk=1)
    held_out = HeldOutLosses(problem, config.held_out, config.examples, torch.Generator().manual_seed(seed))._held_out
    assert sum(len(rows) for rows in held_out) == 16

    def score(mask: Tensor) -> float:
        return float(torch.cat([problem.evaluate(mask.float()[None], rows) for rows in held_out]).double().mean())

    found, _ = run(problem, iterations=6, chunk=1)
    assert score(found.mask) <= min(score(mask) for mask in starts_of(problem, problem.budget)) + 1e-6


def test_rewards_never_come_from_the_examples_held_out() -> None:
    problem = stuck_problem()
    rewarded: list[Tensor] = []
    losses = HeldOutLosses(problem, CONFIG.held_out, CONFIG.examples, torch.Generator().manual_seed(0))
    for _ in range(50):
        rewarded += losses.draw()
    held_out = set(torch.cat(losses._held_out).tolist())
    seen = set(torch.cat(rewarded).tolist())
    assert not held_out & seen
    assert held_out | seen == set(range(64))


def test_a_search_that_finds_nothing_returns_the_warm_start() -> None:
    problem = stuck_problem(loss=lambda masks: (1 - masks) @ stuck_gradients().diagonal().square())
    start = starts_of(problem, problem.budget)[0]
    found, _ = run(problem, iterations=10, chunk=1)
    assert torch.equal(found.mask, start)


def test_the_same_seed_gives_the_same_mask() -> None:
    """Whatever random numbers were drawn before, by other parts of a run."""
    problem = noisy_problem(3)
    torch.manual_seed(0)
    first, rows = run(problem, iterations=8, chunk=1)
    torch.manual_seed(99)
    torch.rand(7)
    second, others = run(problem, iterations=8, chunk=1)
    assert torch.equal(first.mask, second.mask)
    torch.testing.assert_close(first.probabilities, second.probabilities, rtol=0, atol=1e-6)
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in others])


def test_other_seeds_search_elsewhere() -> None:
    losses = [[row["loss"] for row in run(stuck_problem(seed), iterations=3, chunk=1)[1]] for seed in (0, 1)]
    assert losses[0] != losses[1]


def test_every_mask_that_is_tried_meets_the_budget() -> None:
    problem = stuck_problem()
    kept: list[float] = []

    def evaluate(masks: Tensor, rows: Tensor) -> Tensor:
        assert masks.shape == (1, problem.space.n)
        kept.append(float(masks.sum()))
        return with_pairs(masks).expand(len(rows))

    found, _ = run(replace(problem, evaluate=evaluate), iterations=3, chunk=3)
    assert set(kept) == {8.0}
    assert int(found.mask.sum()) == 8
    assert found.forwards == len(kept)


@pytest.mark.parametrize("kl_stop", [1e-5, 0.01, 1e9])
def test_epochs_end_where_the_policy_has_moved_far(kl_stop: float) -> None:
    _, rows = run(stuck_problem(), iterations=12, chunk=1, kl_stop=kl_stop, epochs=5)
    for row in rows:
        assert 1 <= row["epochs"] <= 5
        assert (row["epochs"] == 5) == (row["kl"] <= kl_stop)
    stopped = [row["epochs"] < 5 for row in rows]
    assert any(stopped) == (kl_stop < 1)
    if kl_stop == 1e-5:
        assert all(row["epochs"] == 1 for row in rows), "the first epoch has not moved yet, the second has"


def test_what_each_iteration_reports() -> None:
    _, rows = run(stuck_problem(), iterations=30, chunk=1, entropy=0.3)
    assert [row["step"] for row in rows] == list(range(1, 31))
    forwards = [row["forwards"] for row in rows]
    assert all(later - earlier >= 33 for earlier, later in pairwise(forwards))
    for row in rows:
        assert all(isinstance(value, int | float) and value == value for value in row.values())
        assert row["best_loss"] <= row["loss"]
        assert 0 <= row["clip_fraction"] <= 1
        assert 0 < row["entropy"] <= 16 * 0.6932
        assert row["kl"] >= -1e-6
        assert row["keep"] == 0.5
    assert rows[-1]["incumbent_loss"] < rows[0]["incumbent_loss"]
    assert rows[-1]["entropy"] < rows[0]["entropy"]


def test_probabilities_are_those_of_the_units(synthetic_adapter: Any, budget_options: Any) -> None:
    adapter = synthetic_adapter([(2, 6), (2, 6)])
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(budget_options("rate", 0.5), adapter, space)
    importance = uniform(space.n, seed=1)
    problem = Problem(
        lambda masks, rows: ((1 - masks) @ importance).expand(len(rows)), space, budget, importance, importance, FLAT, 0
    )
    found, _ = run(problem, iterations=2, chunk=3)
    assert found.probabilities.shape == (space.n,)
    assert ((found.probabilities > 0) & (found.probabilities < 1)).all()
    of = make_decisions(importance, space, budget, 3).of
    for decision in of.unique():
        assert len(found.probabilities[of == decision].unique()) == 1


@pytest.mark.parametrize(("sequences", "held_out"), [(2, 0.25), (3, 0.25), (4, 0.9)])
def test_a_handful_of_calibration_examples_is_enough(sequences: int, held_out: float) -> None:
    """Some are always left to take rewards from."""
    rows_seen: list[int] = []

    def evaluate(masks: Tensor, rows: Tensor) -> Tensor:
        rows_seen.append(len(rows))
        return with_pairs(masks).expand(len(rows))

    problem = replace(stuck_problem(), lengths=torch.ones(sequences, dtype=torch.long), evaluate=evaluate)
    found, reports = run(problem, iterations=2, chunk=1, held_out=held_out)
    assert int(found.mask.sum()) == 8
    assert min(rows_seen) > 0
    assert all(report["loss"] == report["loss"] for report in reports)
