"""How much of a tuning is worn."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from policyprune.models.adapter import adapt
from policyprune.pruning.compensation import Edits
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import space_of
from policyprune.surgery.shrink import shrink
from policyprune.tuning.strength import HELD_OUT, SHARES, carried_over, choose, part, split


@pytest.fixture
def case(tiny_llama: Any) -> tuple[Any, Any, Any, Tensor]:
    model = tiny_llama()
    adapter = adapt(model)
    space = space_of(adapter, ["attention", "ffn"])
    return model, adapter, space, torch.rand(space.n) < 0.6


@given(sequences=st.integers(1, 500), fitted=st.integers(1, 500))
def test_nothing_judges_what_it_was_fitted_to(sequences: int, fitted: int) -> None:
    own, judging = split(sequences, fitted)
    assert 1 <= own <= min(sequences, fitted)
    assert len(judging) <= HELD_OUT
    assert len(judging) > 0 or sequences == 1
    assert judging.tolist() == list(range(own, own + len(judging)))
    assert own + len(judging) <= sequences


def scales_of(space: Any, mask: Tensor) -> Edits:
    return Edits(torch.where(mask, 1 + 0.5 * torch.rand(space.n), 0))


def weights_of(model: Any, adapter: Any, space: Any, mask: Tensor) -> Edits:
    smaller = shrink(PrunableModel(model, adapter, space), mask)
    own = {(b.layer, b.kind): smaller.get_submodule(b.out).weight for b in adapter.blocks}
    return Edits(weights={key: weight + torch.randn_like(weight) for key, weight in own.items()})


@pytest.mark.parametrize("kind", ["scales", "weights"])
def test_shares_go_from_the_pruned_model_to_the_tuned_one(kind: str, case: Any) -> None:
    model, adapter, space, mask = case
    prunable = PrunableModel(model, adapter, space)
    edits = scales_of(space, mask) if kind == "scales" else weights_of(*case)
    ids = torch.randint(5, 300, (2, 9))
    with torch.no_grad():
        none, half, whole = (
            shrink(prunable, mask, part(edits, share, *case)).state_dict() for share in (0.0, 0.5, 1.0)
        )
        plain, tuned = shrink(prunable, mask), shrink(prunable, mask, edits)
        torch.testing.assert_close(none, plain.state_dict())
        torch.testing.assert_close(whole, tuned.state_dict())
        torch.testing.assert_close(half, {name: (none[name] + whole[name]) / 2 for name in half})
        assert not torch.allclose(plain(ids).logits, tuned(ids).logits)


def test_a_change_fitted_to_rounded_weights_is_that_of_the_exact_ones(case: Any) -> None:
    model, adapter, space, mask = case
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    fitted = {key: weight.float() for key, weight in weights_of(rounded, adapter, space, mask).weights.items()}
    worn = carried_over(Edits(weights=fitted), rounded, model, adapter, space, mask).weights
    exact, coarse = (part(Edits(weights=fitted), 0.0, own, adapter, space, mask).weights for own in (model, rounded))
    assert any(not torch.equal(exact[key], coarse[key]) for key in fitted)
    for key, weight in worn.items():
        torch.testing.assert_close(weight - exact[key], fitted[key] - coarse[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("losses", "expected"), [([1, 2, 3], 1.0), ([2, 1, 3], 0.5), ([2, 2, 1], 0.0), ([2, 2, 2], 1.0)]
)
def test_the_least_loss_decides(losses: list[float], expected: float, case: Any) -> None:
    told = iter(losses)
    edits = scales_of(case[2], case[3])
    worn, share = choose(edits, *case, loss=lambda smaller: float(next(told)))
    assert share == expected
    assert worn.scales is not None
    torch.testing.assert_close(worn.scales, part(edits, share, *case).scales)


def test_a_loss_that_is_no_number_is_never_chosen(case: Any) -> None:
    told = iter([float("nan"), float("inf"), 5.0])
    assert choose(scales_of(case[2], case[3]), *case, loss=lambda smaller: next(told))[1] == SHARES[-1]
