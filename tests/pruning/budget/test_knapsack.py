"""Levels of blocks against exhaustive search."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from policyprune.pruning.budget.knapsack import choose_levels

blocks = st.integers(1, 4)
levels = st.integers(1, 5)


@given(count=blocks, most=levels, seed=st.integers(0, 10_000), share=st.floats(0.0, 1.0), whole=st.booleans())
def test_it_is_the_best_of_all_choices(count: int, most: int, seed: int, share: float, whole: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    costs = [torch.randint(0, 12, (most,), generator=generator).double() for _ in range(count)]
    if not whole:
        costs = [cost + torch.rand(most, generator=generator).double() for cost in costs]
    values = [torch.rand(most, generator=generator).double() for _ in range(count)]
    least, largest = (sum(float(end(cost)) for cost in costs) for end in (torch.min, torch.max))
    limit = least + share * (largest - least)
    chosen = choose_levels(costs, values, limit)

    def total(of: list[torch.Tensor], choice: tuple[int, ...] | list[int]) -> float:
        return sum(float(each[level]) for each, level in zip(of, choice, strict=True))

    fitting = [c for c in itertools.product(range(most), repeat=count) if total(costs, c) <= limit + 1e-9]
    assert total(costs, chosen) <= limit + 1e-9
    best = min(total(values, choice) for choice in fitting)
    if whole:
        assert total(values, chosen) <= best + 1e-9
    else:  # what fits with a little room to spare is not missed
        roomy = [c for c in fitting if total(costs, c) <= limit - count * (limit - least) / 20_000]
        assert not roomy or total(values, chosen) <= min(total(values, choice) for choice in roomy) + 1e-9


def test_without_room_the_cheapest_are_taken() -> None:
    assert choose_levels([torch.tensor([2.0, 1.0]), torch.tensor([3.0, 5.0])], [torch.zeros(2)] * 2, 0.5) == [1, 0]
