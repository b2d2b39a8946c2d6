"""What a run keeps of its search, and that masks cost the same on smaller models."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from encoders import make_encoder
from harness import validated
from policyprune.errors import UsageError
from policyprune.models.adapter import adapt
from policyprune.models.device import in_search_dtype
from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.optimizers.ppo.ppo import PPO
from policyprune.pruning.optimizers.problem import Found, Problem
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import space_of
from policyprune.search.log import SearchContext, search
from policyprune.search.prune import Pruning, Scores
from policyprune.tasks.task import CalibrationUsage
from policyprune.tracking import NoTracker


class Examples:
    """What the search asks of a task: lengths, and the loss of each example under a model."""

    lengths = torch.tensor([9, 7, 5, 8, 6, 4])

    def loss(self, model: Any, rows: Tensor) -> Tensor:
        ids = torch.arange(6 * 9).view(6, 9)[rows] + 5
        attention = (torch.arange(9) < self.lengths[rows][:, None]).long()
        return model(input_ids=ids, attention_mask=attention).logits.float().logsumexp(-1)


@pytest.mark.parametrize("sliced", [True, False])
def test_masks_are_evaluated_alike_on_smaller_models(
    sliced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_encoder(num_labels=3)
    adapter = adapt(model)
    space = space_of(adapter, ["attention", "ffn"])
    config = validated(
        "task=glue/sst2",
        "budget=flops",
        "budget.keep=0.5",
        "optimizer=ppo",
        "model.search_dtype=float32",
        f"optimizer.sliced={sliced}",
    )
    masks = [
        torch.rand(space.n, generator=torch.Generator().manual_seed(seed)) < keep
        for seed, keep in enumerate((0.3, 0.6, 0.9, 0.9))
    ]
    space.views(masks[0])[1, "attention"].zero_()
    space.views(masks[1])[2, "ffn"].zero_()
    batches = [torch.tensor([0, 3, 2]), torch.tensor([5])]
    found: list[Tensor] = []

    def evaluating(options: PPO, problem: Problem, report: Any, state: Any) -> Found:
        with torch.enable_grad():  # as a warm start does, before any mask is sliced by
            every = torch.ones(3, space.n, requires_grad=True)
            (gradient,) = torch.autograd.grad(problem.evaluate(every, batches[0]).sum(), every)
        assert bool((gradient != 0).any(0).all())
        found.extend(problem.evaluate(mask.float()[None], rows) for mask in masks for rows in batches)
        return Found(masks[0], masks[0].float(), 0)

    monkeypatch.setattr(PPO, "search", evaluating)
    task = Examples()
    before = task.loss(model, batches[0])
    searched(PrunableModel(model, adapter, space), model, config, tmp_path)
    assert torch.equal(task.loss(model, batches[0]), before)
    expected = []
    for mask in masks:
        with PrunableModel(model, adapter, space).masked(mask):
            expected += [task.loss(model, rows) for rows in batches]
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[0], before, rtol=1e-2)


def test_a_search_does_not_go_on_in_another_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_encoder(num_labels=3)
    config = validated("task=glue/sst2", "budget=flops", "budget.keep=0.5", "optimizer=kwon", "model.search_dtype=auto")

    def go(native: bool) -> Tensor:
        monkeypatch.setattr("policyprune.models.device._multiplies_bfloat16", lambda: native)
        quick = in_search_dtype(model, config.model.search_dtype)
        found, facts = searched(PrunableModel.of(model), quick, config, tmp_path)
        assert facts["dtype"] == ("bfloat16" if native else "float32")
        return found.mask

    first = go(native=False)
    with pytest.raises(UsageError, match=r"model\.search_dtype: bfloat16 cannot go on .* began in float32"):
        go(native=True)
    assert torch.equal(go(native=False), first)


def searched(prunable: PrunableModel, quick: Any, config: Any, folder: Path) -> tuple[Found, dict[str, Any]]:
    """A search with equal scores, kept in a folder."""
    ones, usage = torch.ones(prunable.space.n), CalibrationUsage(Examples())  # type: ignore[arg-type]
    pruning = Pruning(
        prunable=prunable,
        quick=prunable.on(quick),
        data=usage,
        budget=make_budget(config.budget, prunable.adapter, prunable.space),
        importance=config.importance,
        seed=config.seed,
    )
    vars(pruning)["evidence"] = SimpleNamespace(gradients=ones[None])
    context = SearchContext(
        folder=folder, config_hash="the same", safety=config.safety, tracker=NoTracker(), usage=usage
    )
    return search(pruning, Scores(ones, ones, prunable.space), config.optimizer, context)
