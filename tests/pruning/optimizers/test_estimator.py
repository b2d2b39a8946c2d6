"""The gradient estimate against the true gradient: its expectation is enumerated over all masks that can be drawn."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from policyprune.pruning.optimizers.estimator import Baseline, gradient
from policyprune.pruning.optimizers.policy_gradient import PolicyGradient

K, M = 2, 2  # masks per step, sequences per batch
PREVIOUS = 2.5  # an average from earlier steps
OFFSET = 3.0  # losses are far from zero, which is what baselines are for


@dataclass(frozen=True)
class Toy:
    """Sequences with a loss for each of the 2^n masks, and all draws of a step with their probabilities."""

    s: Tensor
    dense: Tensor  # (M,)
    objective: Tensor  # true gradient of the expected mean loss, (n,)
    masks: Tensor  # (draws, K, samples per mask, n)
    losses: Tensor  # (draws, K, M or 1)
    weights: Tensor  # (draws,), sum to 1

    def estimates(self, config: PolicyGradient, average: float | None, divisor: float) -> Tensor:
        """What each draw would be estimated as: (draws, n)."""

        def one(masks: Tensor, losses: Tensor) -> Tensor:
            start = None if average is None else torch.tensor(average, dtype=torch.float64)
            dense = self.dense if losses.shape[1] == M else self.dense.mean(0, keepdim=True)
            advantages = Baseline(config.baseline, config.window, config.window_update, start).advantages(losses, dense)
            return gradient(masks.flatten(0, 1), advantages.flatten(), self.s, config.score, divisor)

        return torch.vmap(one)(self.masks, self.losses)

    def mean(self, estimates: Tensor) -> Tensor:
        return self.weights @ estimates

    def variance(self, estimates: Tensor) -> float:
        return float(self.weights @ (estimates - self.mean(estimates)).square().sum(1))


def probability(masks: Tensor, s: Tensor) -> Tensor:
    return torch.where(masks.bool(), s, 1 - s).prod(-1)


def make_toy(mask_per: str, n: int) -> Toy:
    every = torch.tensor(list(product([0.0, 1.0], repeat=n)), dtype=torch.float64)
    table = OFFSET + torch.randn(len(every), M, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    s = torch.linspace(0.2, 0.85, n, dtype=torch.float64).requires_grad_()
    expected = probability(every, s) @ table.mean(1)
    (objective,) = torch.autograd.grad(expected, s)
    s = s.detach()
    samples = M if mask_per == "sequence" else 1
    drawn = torch.cartesian_prod(*[torch.arange(len(every))] * (K * samples)).view(-1, K, samples)
    masks = every[drawn]
    losses = table[drawn, torch.arange(M)] if samples == M else table[drawn].mean(-1)
    weights = probability(masks, s).prod(-1).prod(-1)
    return Toy(s, table[-1], objective, masks, losses, weights)


@pytest.fixture(params=[("sequence", 4), ("batch", 5)], ids=["mask per sequence", "mask per batch"], scope="module")
def toy(request: pytest.FixtureRequest) -> Toy:
    made = make_toy(*request.param)
    assert made.weights.sum().item() == pytest.approx(1)
    return made


def samples_of(toy: Toy) -> int:
    return K * toy.masks.shape[2]


@pytest.mark.parametrize("score", ["textbook", "released", "natural"])
@pytest.mark.parametrize(
    ("baseline", "average"),
    [("none", None), ("leave_one_out", None), ("residual", None), ("moving_average", PREVIOUS)],
)
def test_the_estimate_is_unbiased(toy: Toy, search_options: Any, baseline: str, average: float, score: str) -> None:
    config = search_options(baseline=baseline, score=score, window_update="after_use")
    variance = toy.s * (1 - toy.s)
    factor = {"textbook": torch.ones_like(variance), "released": variance.sqrt(), "natural": variance}[score]
    estimates = toy.estimates(config, average, samples_of(toy))
    torch.testing.assert_close(toy.mean(estimates), factor * toy.objective, rtol=1e-9, atol=1e-12)


def test_an_average_that_already_holds_this_step_s_losses_shortens_the_gradient(toy: Toy, search_options: Any) -> None:
    config = search_options(baseline="moving_average", score="textbook", window=5, window_update="before_use")
    estimates = toy.estimates(config, PREVIOUS, samples_of(toy))
    shortened = (1 - 1 / (5 * samples_of(toy))) * toy.objective
    torch.testing.assert_close(toy.mean(estimates), shortened, rtol=1e-9, atol=1e-12)


def test_the_first_step_of_the_average_uses_this_step_s_mean(toy: Toy, search_options: Any) -> None:
    config = search_options(baseline="moving_average", score="textbook")
    estimates = toy.estimates(config, None, samples_of(toy) - 1)
    torch.testing.assert_close(toy.mean(estimates), toy.objective, rtol=1e-9, atol=1e-12)


def test_the_paper_s_divisor_lengthens_the_gradient(toy: Toy, search_options: Any) -> None:
    config = search_options(baseline="none", score="textbook")
    estimates = toy.estimates(config, None, samples_of(toy) * (K - 1) / K)
    torch.testing.assert_close(toy.mean(estimates), K / (K - 1) * toy.objective, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("baseline", ["leave_one_out", "residual", "moving_average"])
def test_baselines_lower_the_variance(toy: Toy, search_options: Any, baseline: str) -> None:
    plain = toy.estimates(search_options(baseline="none", score="textbook"), None, samples_of(toy))
    average = PREVIOUS if baseline == "moving_average" else None
    better = toy.estimates(search_options(baseline=baseline, score="textbook"), average, samples_of(toy))
    assert toy.variance(better) < 0.5 * toy.variance(plain)


def test_the_average_follows_its_equation() -> None:
    baseline = Baseline("moving_average", 4, "after_use")
    first, second, third = torch.tensor([[1.0], [3.0]]), torch.tensor([[6.0], [6.0]]), torch.tensor([[0.0], [2.0]])
    assert baseline.advantages(first, None).tolist() == [[-1], [1]]
    assert baseline.advantages(second, None).tolist() == [[4], [4]]  # against 2, the average before this step
    assert baseline.advantages(third, None).tolist() == [[-3], [-1]]  # against 3/4 * 2 + 1/4 * 6
    assert baseline.average is not None
    assert baseline.average.item() == pytest.approx(0.75 * 3 + 0.25 * 1)


def test_updating_before_use_counts_this_step_in() -> None:
    baseline = Baseline("moving_average", 4, "before_use")
    baseline.advantages(torch.tensor([[2.0], [2.0]]), None)
    assert baseline.advantages(torch.tensor([[6.0], [6.0]]), None).tolist() == [[3], [3]]


@pytest.mark.parametrize("score", ["textbook", "released", "natural"])
def test_certain_units_get_no_gradient_and_no_infinity(score: str) -> None:
    s = torch.tensor([0.0, 1.0, 0.5])
    masks = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    estimate = gradient(masks, torch.tensor([1.0, -1.0]), s, score, 2)
    assert estimate[:2].tolist() == [0, 0]
    assert estimate[2] > 0
