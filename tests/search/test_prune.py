"""From a dense model to a smaller one without config files, folders or trackers."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import validated
from policyprune.models.sequences import token_losses
from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.budget.selection import one_shot_mask
from policyprune.pruning.prunable import PrunableModel
from policyprune.search.prune import Pruning, find_mask, prune, score
from policyprune.surgery.shrink import shrink

IDS = torch.randint(3, 300, (24, 12), generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Sequences:
    """All that pruning asks of calibration data."""

    lengths: Tensor

    def inputs(self, rows: Tensor) -> dict[str, Tensor]:
        return {"input_ids": IDS[rows]}

    def loss(self, model: Any, rows: Tensor) -> Tensor:
        return token_losses(model, IDS[rows]).mean(1)


def options(*overrides: str) -> Any:
    return validated("budget=flops", "budget.keep=0.6", "importance.sequences=8", *overrides)


def pruning_of(config: Any, model: Any, **changes: Any) -> Pruning:
    prunable = PrunableModel.of(model, config.granularity.units)
    pruning = Pruning(
        prunable=prunable,
        quick=prunable,
        data=Sequences(torch.full((len(IDS),), IDS.shape[1])),
        budget=make_budget(config.budget, prunable.adapter, prunable.space),
        importance=config.importance,
        tuning=config.tuning,
        seed=3,
    )
    return replace(pruning, **changes)


SEARCHES = {
    "one_shot": ["optimizer=one_shot"],
    "policy_gradient": ["optimizer=policy_gradient", "optimizer.steps=6", "optimizer.batch_size=4"],
    "layers": ["granularity=layer", "optimizer=one_shot", "importance=taylor"],
    "kwon": ["optimizer=kwon", "importance=fisher"],
}


@pytest.mark.parametrize("tuning", ["none", "cg2", "reconstruct", "bias_compensation"])
@pytest.mark.parametrize("name", SEARCHES)
def test_the_smaller_model_is_the_dense_one_without_what_the_mask_leaves_out(
    name: str, tuning: str, tiny_llama: Any
) -> None:
    few = [] if tuning == "none" else ["tuning.sequences=8"]
    config = options(*SEARCHES[name], f"tuning={tuning}", *few)
    pruning = pruning_of(config, tiny_llama())
    before = pruning.prunable.model(IDS).logits
    pruned = prune(pruning, config.optimizer)
    assert bool((pruning.budget.spent(pruned.found.mask) <= pruning.budget.pool_limit * (1 + 1e-9)).all())
    assert torch.equal(pruned.mask, pruning.prunable.space.expand(pruned.found.mask))
    again = shrink(pruning.prunable, pruned.mask, pruned.compensation)
    assert torch.equal(pruned.model(IDS).logits, again(IDS).logits)
    assert (pruned.compensation is None) == (tuning == "none")
    if tuning == "none":
        with pruning.prunable.masked(pruned.mask) as masked, torch.no_grad():
            torch.testing.assert_close(pruned.model(IDS).logits, masked(IDS).logits, rtol=1e-3, atol=1e-4)
    assert torch.equal(pruning.prunable.model(IDS).logits, before)


def test_scores_are_the_sum_over_what_a_decision_is_on(tiny_llama: Any) -> None:
    config = options("granularity=layer", "importance=taylor")
    layers, units = pruning_of(config, tiny_llama()), pruning_of(options("importance=taylor"), tiny_llama())
    sums = [view.double().sum() for view in units.prunable.units.views(score(units).importance).values()]
    pairs = torch.stack(sums).view(-1, 2).sum(1)
    torch.testing.assert_close(score(layers).importance.double(), pairs, rtol=1e-4, atol=1e-7)


def test_a_search_reports_its_steps_and_repeats_itself(tiny_llama: Any) -> None:
    config = options(*SEARCHES["policy_gradient"])
    pruning = pruning_of(config, tiny_llama())
    scores = score(pruning)
    steps: list[dict[str, Any]] = []
    found = find_mask(pruning, scores, config.optimizer, report=steps.append)
    assert [int(step["step"]) for step in steps] == list(range(1, 7))
    assert torch.equal(find_mask(pruning, scores, config.optimizer).mask, found.mask)
    other = find_mask(replace(pruning, seed=4), scores, config.optimizer)
    assert not torch.equal(other.probabilities, found.probabilities)


def test_without_a_search_the_scores_decide(tiny_llama: Any) -> None:
    config = options("optimizer=one_shot")
    pruning = pruning_of(config, tiny_llama())
    scores = score(pruning)
    expected = one_shot_mask(scores.importance, pruning.budget, config.importance.per_cost)
    assert torch.equal(find_mask(pruning, scores, config.optimizer).mask, expected)
