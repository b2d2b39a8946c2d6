"""How much of a tuning is worn."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from policyprune.pruning.compensation import Compensation, carried_over, part
from policyprune.pruning.prunable import PrunableModel
from policyprune.surgery.shrink import shrink
from policyprune.tuning.fit import HELD_OUT, SHARES, choose, split
from policyprune.tuning.teacher_student import Fitted


@pytest.fixture
def prunable(tiny_llama: Any) -> PrunableModel:
    return PrunableModel.of(tiny_llama())


@pytest.fixture
def mask(prunable: PrunableModel) -> Tensor:
    return torch.rand(prunable.units.n) < 0.6


@given(sequences=st.integers(1, 500), fitted=st.integers(1, 500))
def test_nothing_judges_what_it_was_fitted_to(sequences: int, fitted: int) -> None:
    own, judging = split(sequences, fitted)
    assert 1 <= own <= min(sequences, fitted)
    assert len(judging) <= HELD_OUT
    assert len(judging) > 0 or sequences == 1
    assert judging.tolist() == list(range(own, own + len(judging)))
    assert own + len(judging) <= sequences


def scales_of(mask: Tensor) -> Compensation:
    return Compensation(torch.where(mask, 1 + 0.5 * torch.rand(len(mask)), 0))


def weights_of(prunable: PrunableModel, mask: Tensor) -> Compensation:
    smaller = shrink(prunable, mask)
    kept = {key: smaller.get_submodule(block.out).weight for key, block in prunable.blocks.items()}
    return Compensation(weights={key: weight + torch.randn_like(weight) for key, weight in kept.items()})  # type: ignore[arg-type,operator]


@pytest.mark.parametrize("kind", ["scales", "weights"])
def test_shares_go_from_the_pruned_model_to_the_tuned_one(kind: str, prunable: PrunableModel, mask: Tensor) -> None:
    compensation = scales_of(mask) if kind == "scales" else weights_of(prunable, mask)
    ids = torch.randint(5, 300, (2, 9))
    with torch.no_grad():
        none, half, whole = (
            shrink(prunable, mask, part(compensation, share, prunable, mask)).state_dict() for share in (0.0, 0.5, 1.0)
        )
        plain, tuned = shrink(prunable, mask), shrink(prunable, mask, compensation)
        torch.testing.assert_close(none, plain.state_dict())
        torch.testing.assert_close(whole, tuned.state_dict())
        torch.testing.assert_close(half, {name: (none[name] + whole[name]) / 2 for name in half})
        assert not torch.allclose(plain(ids).logits, tuned(ids).logits)


def test_a_change_fitted_to_rounded_weights_is_that_of_the_exact_ones(prunable: PrunableModel, mask: Tensor) -> None:
    rounded = prunable.on(copy.deepcopy(prunable.model).to(torch.bfloat16))  # type: ignore[arg-type]
    fitted = {key: weight.float() for key, weight in weights_of(rounded, mask).weights.items()}
    carried = carried_over(Compensation(weights=fitted), rounded, prunable, mask).weights
    exact, coarse = (part(Compensation(weights=fitted), 0.0, own, mask).weights for own in (prunable, rounded))
    assert any(not torch.equal(exact[key], coarse[key]) for key in fitted)
    for key, weight in carried.items():
        torch.testing.assert_close(weight - exact[key], fitted[key] - coarse[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("losses", "expected"), [([1, 2, 3], 1.0), ([2, 1, 3], 0.5), ([2, 2, 1], 0.0), ([2, 2, 2], 1.0)]
)
def test_the_least_loss_decides(losses: list[float], expected: float, prunable: PrunableModel, mask: Tensor) -> None:
    values = iter(losses)
    compensation, reselected = scales_of(mask), ~mask.bool()
    fitted = Fitted(reselected, compensation, [{"layer": 0}])
    chosen, share = choose(fitted, prunable, mask, loss=lambda smaller: float(next(values)))
    assert share == expected
    assert chosen.report == [{"layer": 0, "strength": expected}]
    own = mask if share == 0 else reselected
    assert torch.equal(chosen.mask, own)
    assert chosen.compensation.scales is not None
    torch.testing.assert_close(chosen.compensation.scales, part(compensation, share, prunable, own).scales)


def test_a_loss_that_is_no_number_is_never_chosen(prunable: PrunableModel, mask: Tensor) -> None:
    values = iter([float("nan"), float("inf"), 5.0])
    assert choose(Fitted(mask, scales_of(mask), []), prunable, mask, loss=lambda smaller: next(values))[1] == SHARES[-1]
