"""From importance scores to initial keep probabilities."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from policyprune.config.schema import Importance
from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.budget.selection import select
from policyprune.pruning.importance.data_free import Random
from policyprune.pruning.importance.initialisation import initial_probabilities
from policyprune.pruning.space import space_of

COUNTS = [(4, 10), (4, 10), (4, 10)]
mappings = st.sampled_from(["sigmoid_norm", "norm"])
scales = st.sampled_from(["per_layer", "global"])
scopes = st.sampled_from(["global", "per_layer"])


def importance(mapping: str, normalize: str = "per_layer", confidence: float = 0.8) -> Importance:
    return Random(sequences=1, mapping=mapping, normalize=normalize, confidence=confidence)


@given(
    mapping=mappings,
    normalize=scales,
    scope=scopes,
    name=st.sampled_from(["rate", "flops"]),
    keep=st.floats(0.1, 0.95),
    seed=st.integers(0, 1000),
)
def test_the_probabilities_spend_the_budget_in_the_order_of_the_scores(
    synthetic_adapter: Any,
    budget_options: Any,
    random_scores: Any,
    mapping: str,
    normalize: str,
    scope: str,
    name: str,
    keep: float,
    seed: int,
) -> None:
    adapter = synthetic_adapter(COUNTS)
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(budget_options(name, keep, scope=scope), adapter, space)
    scores = 100 * random_scores(space.n, seed)
    s = initial_probabilities(scores, space, budget, importance(mapping, normalize))
    assert s.dtype == torch.float32
    assert ((s >= 0) & (s <= 1)).all()
    torch.testing.assert_close(budget.spent(s), budget.pool_limit, rtol=1e-5, atol=1e-4)
    views = space.views(s)
    for key, own in space.views(scores).items():
        assert (views[key][own.argsort()].diff() >= 0).all()


@pytest.mark.parametrize("scope", ["global", "per_layer"])
@pytest.mark.parametrize("normalize", ["per_layer", "global"])
@pytest.mark.parametrize("mapping", ["sigmoid_norm", "norm"])
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_constant_scores_give_the_keep_rate_everywhere(
    synthetic_adapter: Any, budget_options: Any, mapping: str, normalize: str, scope: str, constant: float
) -> None:
    adapter = synthetic_adapter(COUNTS)
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(budget_options("rate", 0.5, scope=scope), adapter, space)
    s = initial_probabilities(torch.full((space.n,), constant), space, budget, importance(mapping, normalize))
    torch.testing.assert_close(s, torch.full((space.n,), 0.5))


@pytest.mark.parametrize("mapping", ["sigmoid_norm", "norm", "score_const"])
def test_the_scale_of_the_scores_does_not_matter(
    synthetic_adapter: Any, budget_options: Any, random_scores: Any, mapping: str
) -> None:
    adapter = synthetic_adapter(COUNTS)
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(budget_options("rate", 0.6), adapter, space)
    scores = random_scores(space.n, 0)
    first, second = (
        initial_probabilities(factor * scores, space, budget, importance(mapping)) for factor in (1.0, 1024.0)
    )
    torch.testing.assert_close(first, second)


def test_per_layer_ignores_how_large_a_layer_s_scores_are_and_global_does_not(
    synthetic_adapter: Any, budget_options: Any, random_scores: Any
) -> None:
    adapter = synthetic_adapter(COUNTS)
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(budget_options("rate", 0.5), adapter, space)
    scores = random_scores(space.n, 1)
    larger = scores.clone()
    space.views(larger)[2, "ffn"].mul_(8)

    def rate(values: Tensor, normalize: str) -> float:
        s = initial_probabilities(values, space, budget, importance("sigmoid_norm", normalize))
        return space.views(s)[2, "ffn"].mean().item()

    assert rate(larger, "per_layer") == pytest.approx(rate(scores, "per_layer"), abs=1e-6)
    assert rate(larger, "global") > rate(scores, "global") + 0.1


@given(keep=st.floats(0.1, 1), confidence=st.floats(0.51, 0.99), seed=st.integers(0, 1000))
def test_score_const_is_as_sure_of_what_the_metric_keeps_as_it_is_told(
    synthetic_adapter: Any, budget_options: Any, random_scores: Any, keep: float, confidence: float, seed: int
) -> None:
    adapter = synthetic_adapter(COUNTS)
    space = space_of(adapter, ["attention", "ffn"])
    budget = make_budget(budget_options("rate", keep), adapter, space)
    scores = random_scores(space.n, seed)
    s = initial_probabilities(scores, space, budget, importance("score_const", confidence=confidence))
    kept = select(scores, budget)
    torch.testing.assert_close(s[kept], torch.full_like(s[kept], confidence))
    torch.testing.assert_close(s[~kept], torch.full_like(s[~kept], 1 - confidence))
