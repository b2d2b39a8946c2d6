"""Decisions on query heads: one of every group goes with each, those that matter least first."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from policyprune.pruning.space import Group, Space

UNITS = (Group(0, "attention", 6), Group(0, "ffn", 4), Group(1, "attention", 9))
FIRST, LAST = (0, 1, 2) * 2, (0, 1, 2) * 3
SPACE = Space((Group(0, "attention", 3), Group(0, "ffn", 4), Group(1, "attention", 3)), UNITS, (FIRST, (), LAST))
GATED = Space((*SPACE.groups, Group(1, "attention_block", 1)), UNITS, SPACE.ranks)


@given(seed=st.integers(0, 10_000))
def test_every_group_loses_its_least_query_heads_and_as_many_as_the_others(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(SPACE.units.n, generator=generator)
    space = SPACE.ranked(scores)
    gone = torch.randint(0, 4, (2,), generator=generator).tolist()
    decisions = torch.ones(space.n, dtype=torch.bool)
    space.views(decisions)[0, "attention"][: gone[0]] = False
    space.views(decisions)[1, "attention"][: gone[1]] = False
    mask, by_unit = space.units.views(space.expand(decisions)), space.units.views(scores)
    for layer, count in enumerate(gone):
        kept, own = mask[layer, "attention"].view(-1, 3), by_unit[layer, "attention"].view(-1, 3)
        assert kept.sum(1).tolist() == [3 - count] * len(kept)
        for of_group, worth in zip(kept, own, strict=True):
            assert not of_group.any() or of_group.all() or worth[~of_group].max() <= worth[of_group].min()
    assert bool(mask[0, "ffn"].all())


@given(seed=st.integers(0, 10_000))
def test_a_decision_is_worth_what_its_query_heads_are_worth(seed: int) -> None:
    scores = torch.randn(SPACE.units.n, generator=torch.Generator().manual_seed(seed)).double()
    space = GATED.ranked(scores)
    pooled = space.pooled(scores)
    for decision in range(space.n):
        others = torch.ones(space.n)
        others[decision] = 0
        assert torch.isclose((scores * (1 - space.expand(others))).sum(), pooled[decision])
    views = space.views(pooled)
    assert all(bool((views[layer, "attention"].diff() >= 0).all()) for layer in (0, 1))


def test_gates_stand_above_query_heads() -> None:
    decisions = torch.ones(GATED.n)
    GATED.views(decisions)[1, "attention_block"][0] = 0
    mask = GATED.units.views(GATED.expand(decisions))
    assert not mask[1, "attention"].any()
    assert mask[0, "attention"].all()
