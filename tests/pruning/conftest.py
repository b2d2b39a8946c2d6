"""Spaces, budgets and configs without a network behind them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from policyprune.config.schema import Budget as BudgetConfig
from policyprune.models.adapter import Adapter, Block
from policyprune.models.families.llama import LLAMA
from policyprune.pruning.budget.budget import Budget, make_budget
from policyprune.pruning.optimizers.policy_gradient import PolicyGradient
from policyprune.pruning.optimizers.problem import Problem
from policyprune.pruning.space import Group, Space, space_of

KINDS = ("attention", "ffn")
PRICES = {"attention": 70, "ffn": 9}  # parameters of a unit
FIXED = 31


def make_adapter(counts: Sequence[tuple[int, int]]) -> Adapter:
    """Layers with (attention, ffn) units; all that a budget asks of a model."""
    blocks = [
        Block(
            layer=layer,
            kind=kind,
            path="",
            count=count,
            width=1,
            params_per_unit=PRICES[kind],
            macs_per_token=PRICES[kind] - 1,
            score_width=3 if kind == "attention" else 0,
        )
        for layer, pair in enumerate(counts)
        for kind, count in zip(KINDS, pair, strict=True)
    ]
    layers = tuple(str(layer) for layer in range(len(counts)))
    return Adapter(family=LLAMA, layers=layers, blocks=tuple(blocks), head_dim=1, fixed_params=FIXED)


def make_space(counts: Sequence[tuple[int, int]]) -> Space:
    return Space(
        tuple(
            Group(layer, kind, count)
            for layer, pair in enumerate(counts)
            for kind, count in zip(KINDS, pair, strict=True)
        )
    )


@pytest.fixture
def small_problem() -> Callable[..., Problem]:
    """4 heads and 8 channels in two layers, half of each to keep; what a mask loses is given."""

    def make(evaluate: Callable[[Tensor, Tensor], Tensor], importance: Tensor) -> Problem:
        adapter = make_adapter([(2, 4), (2, 4)])
        space = space_of(adapter, KINDS)
        budget = make_budget(budget_config("rate", 0.5), adapter, space)
        lengths = torch.ones(20, dtype=torch.long)
        return Problem(evaluate, space, budget, importance, torch.full((space.n,), 0.5), lengths, seed=3)

    return make


def plain_budget(cost: Tensor, segment: Tensor, limit: Tensor, keep: float = 0.5) -> Budget:
    """Segments that are pools of their own."""
    limit = limit.double()
    return Budget(cost=cost.double(), segment=segment, limit=limit, pool=segment, pool_limit=limit, keep=keep)


def budget_config(name: str, keep: float, scope: str = "global", sequence_length: int = 10) -> BudgetConfig:
    return BudgetConfig(name=name, keep=keep, scope=scope, sequence_length=sequence_length)


SEARCH = PolicyGradient(
    steps=100,
    batch_size=8,
    masks=2,
    mask_per="sequence",
    score="released",
    baseline="leave_one_out",
    window=5,
    window_update="after_use",
    divisor="masks",
    attention_rate=1,
    learning_rate=0.02,
    schedule="cosine",
    projection="cap",
    progressive=False,
)


@pytest.fixture(scope="session")
def synthetic_adapter() -> Callable[[Sequence[tuple[int, int]]], Adapter]:
    return make_adapter


@pytest.fixture(scope="session")
def synthetic_space() -> Callable[[Sequence[tuple[int, int]]], Space]:
    return make_space


@pytest.fixture(scope="session")
def segments_budget() -> Callable[..., Budget]:
    return plain_budget


@pytest.fixture(scope="session")
def budget_options() -> Callable[..., BudgetConfig]:
    return budget_config


@pytest.fixture(scope="session")
def search_options() -> Callable[..., PolicyGradient]:
    """Settings of the policy gradient, with changes."""

    def make(**changes: Any) -> PolicyGradient:
        return replace(SEARCH, **changes)

    return make


@pytest.fixture(scope="session")
def random_scores() -> Callable[[int, int], Tensor]:
    """Scores (n,) in [0, 1) by seed."""

    def make(n: int, seed: int) -> Tensor:
        return torch.rand(n, generator=torch.Generator().manual_seed(seed))

    return make
