"""Searches over widths on a tiny model, with least-squares weights and the divergence from the dense model."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import policyprune as pp
from encoders import make_encoder
from harness import validated
from policyprune.models.sequences import token_losses
from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.optimizers.levels.level_evolution import LevelEvolution
from policyprune.pruning.optimizers.levels.level_policy_gradient import LevelPolicyGradient
from policyprune.pruning.optimizers.levels.level_ppo import LevelPPO
from policyprune.pruning.optimizers.levels.levels import Levels
from policyprune.pruning.optimizers.levels.widths import Widths
from policyprune.pruning.optimizers.problem import Found
from policyprune.pruning.prunable import PrunableModel
from policyprune.search.forwards import Forwards
from policyprune.search.prune import Pruning, Statistics, find_mask, score
from policyprune.tasks.divergence import Divergence

IDS = torch.randint(3, 300, (12, 10), generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Sequences:
    lengths: Tensor

    def inputs(self, rows: Tensor) -> dict[str, Tensor]:
        return {"input_ids": IDS[rows]}

    def loss(self, model: Any, rows: Tensor) -> Tensor:
        return token_losses(model, IDS[rows]).mean(1)


@pytest.fixture(scope="module")
def pruning(tiny_llama: Any) -> Pruning:
    config = validated("budget=flops", "budget.keep=0.6", "importance=obs")
    prunable = PrunableModel.of(tiny_llama(num_hidden_layers=4), ["attention", "ffn"])
    return Pruning(
        prunable=prunable,
        quick=prunable,
        data=Sequences(torch.full((len(IDS),), IDS.shape[1])),
        budget=make_budget(config.budget, prunable.adapter, prunable.space),
        importance=config.importance,
        seed=3,
    )


@torch.no_grad()
def divergence(pruning: Pruning, mask: Tensor) -> float:
    """Over all sequences, with the least-squares weights of what is kept."""
    loss = Divergence(pruning.data, pruning.quick.model).loss
    forwards = Forwards(pruning.quick, loss, sliced=True, refit=pruning.evidence.second_order.weights)
    with forwards.on():
        return float(forwards(mask[None].float(), torch.arange(len(IDS))).double().mean())


def within(pruning: Pruning, mask: Tensor) -> bool:
    return bool((pruning.budget.spent(mask) <= pruning.budget.pool_limit * (1 + 1e-9)).all())


def test_exchanges_of_levels_lower_the_divergence(pruning: Pruning) -> None:
    scores = score(pruning)
    search = LevelEvolution(steps=6, offspring=6, survivors=[3], sequences=[4, 12], levels=8)
    found = find_mask(pruning, scores, search)
    widths = Widths.of(pruning.prunable.space, scores.importance, pruning.budget, 8)
    assert within(pruning, found.mask)
    assert divergence(pruning, found.mask) < divergence(pruning, widths.mask(widths.uniform()))


def test_rounds_give_masks_the_weights_of_statistics_behind_pruned_layers(pruning: Pruning) -> None:
    """The last losses of the search are those of masks with the weights of the last statistics."""
    scores = score(pruning)
    search = LevelEvolution(steps=2, rounds=2, offspring=4, survivors=[2], sequences=[4, 12], levels=4)
    steps: list[dict[str, Any]] = []
    found = find_mask(pruning, scores, search, report=steps.append)
    assert len(steps) == 4
    assert bool((pruning.budget.spent(found.mask) <= pruning.budget.pool_limit * (1 + 1e-9)).all())
    assert torch.equal(find_mask(pruning, scores, search).mask, found.mask)
    statistics = Statistics(pruning.evidence)
    mask = torch.rand(len(found.mask), generator=torch.Generator().manual_seed(1)) < 0.7
    before = statistics.weights(mask)
    renewed = statistics.renew(found.mask)
    assert not torch.allclose(renewed, scores.importance)
    assert any(not torch.allclose(weight, before[key]) for key, weight in statistics.weights(mask).items())


def test_a_mask_has_another_loss_after_the_statistics_are_gathered_anew(pruning: Pruning) -> None:
    """Neither the memory of the last forward nor losses on disk answer for the old weights."""
    losses: list[float] = []

    @dataclass(kw_only=True)
    class Twice(LevelEvolution):
        def search(self, problem: Any, report: Any, state: Any = None) -> Any:
            rows, mask = torch.arange(12), torch.arange(problem.space.n) % 4 > 0
            for _ in range(2):
                losses.extend(float(problem.losses([(mask[None].float(), rows)])[0].mean()) for _ in range(2))
                problem.behind(mask)
            return Found(mask, mask.float(), 4)

    for _ in range(2):
        find_mask(pruning, score(pruning), Twice())
    first, again, anew, last = losses[:4]
    assert first == again != anew == last
    assert losses[4:] == losses[:4]


@pytest.mark.parametrize("kind", [LevelPolicyGradient, LevelPPO])
def test_a_policy_over_levels_is_not_worse_than_its_start(kind: type[LevelPolicyGradient], pruning: Pruning) -> None:
    scores = score(pruning)
    common: dict[str, Any] = {"levels": 8, "sequences": 8, "widths": [0.5]}
    start = find_mask(pruning, scores, Levels(**common))
    search = kind(**common, steps=10, masks=6, first_sequences=2, final_sequences=12)
    found = find_mask(pruning, scores, search)
    assert within(pruning, found.mask)
    assert divergence(pruning, found.mask) <= divergence(pruning, start.mask)


@torch.no_grad()
def test_the_tasks_own_loss_can_be_minimised(pruning: Pruning) -> None:
    rows: list[dict[str, Any]] = []
    find_mask(pruning, score(pruning), Levels(levels=4, widths=[0.5], sequences=12, loss="task"), rows.append)
    dense = pruning.data.loss(pruning.quick.model, torch.arange(len(IDS)))
    assert rows[0]["loss"] == pytest.approx(float(dense.mean()), rel=1e-5)


def test_an_encoder_is_pruned_by_ppo_over_levels() -> None:
    model = make_encoder("SequenceClassification", num_labels=3).eval()
    data = {"input_ids": torch.randint(5, 60, (16, 12)), "attention_mask": torch.ones(16, 12, dtype=torch.long)}
    data["labels"] = torch.randint(0, 3, (16,))
    search = LevelPPO(steps=3, masks=3, widths=[0.5], final_sequences=8)
    report = pp.prune(model, data, keep=0.6, budget="flops", importance="obs", optimizer=search).report
    assert 0.4 * report.dense["block_macs"] < report.smaller["block_macs"] <= 0.6 * report.dense["block_macs"]
    assert report.backwards == 0
