"""How masks are judged by what their models predict."""

from typing import Any

import pytest
import torch
from torch import Tensor

from encoders import make_encoder
from harness import validated
from policyprune.pruning.budget.budget import make_budget
from policyprune.pruning.prunable import PrunableModel
from policyprune.search.forwards import Forwards
from policyprune.search.prune import Pruning, prune
from policyprune.search.verdict import Verdict
from policyprune.surgery.shrink import shrink
from policyprune.tasks.divergence import Divergence
from policyprune.tuning.options import CG2

ROWS = torch.tensor([7, 2, 40, 11, 3])


class Sentences:
    """90 random labelled sequences, and which of them were looked at."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(5, 290, (90, 10), generator=generator)
        self.lengths = torch.randint(4, 11, (90,), generator=generator)
        self.seen: list[int] = []

    def inputs(self, rows: Tensor) -> dict[str, Tensor]:
        self.seen += rows.tolist()
        mask = torch.arange(10)[None] < self.lengths[rows][:, None]
        return {"input_ids": self.ids[rows], "attention_mask": mask.long()}

    def loss(self, model: Any, rows: Tensor) -> Tensor:
        logits = model(**self.inputs(rows))[0]
        return torch.nn.functional.cross_entropy(logits.flatten(1)[:, :2], rows % 2, reduction="none")


def some_of(prunable: PrunableModel, seed: int = 1) -> Tensor:
    return torch.rand(prunable.space.n, generator=torch.Generator().manual_seed(seed)) < 0.6


def nothing() -> None:
    """Nothing is masked."""


@pytest.mark.parametrize("tuning", [None, CG2()])
def test_it_is_the_divergence_of_the_model_that_a_run_would_make(tuning: Any) -> None:
    prunable, data = PrunableModel.of(make_encoder()), Sentences()
    verdict = Verdict(prunable, data, tuning, nothing)
    assert float(verdict(torch.ones(prunable.space.n).bool(), ROWS, tuned=False)[:, 0].abs().max()) < 1e-5
    mask = some_of(prunable)
    untuned = verdict(mask, ROWS, tuned=False)
    smaller = shrink(prunable, mask)
    expected = Divergence(data, prunable.model, scaled=True).loss(smaller, ROWS), data.loss(smaller, ROWS)
    torch.testing.assert_close(untuned, torch.stack(expected, 1).double(), rtol=1e-4, atol=1e-6)
    tuned = verdict(mask, ROWS, tuned=True)
    assert torch.equal(tuned, untuned) == (tuning is None)
    assert torch.equal(verdict(mask, ROWS, tuned=True), tuned), "and once more the same"


def test_the_tuning_never_sees_the_sequences_that_it_is_judged_by() -> None:
    prunable, data = PrunableModel.of(make_encoder()), Sentences()
    seen: list[Any] = []

    class Watching(CG2):
        def fit(self, prunable: Any, mask: Tensor, lesson: Any) -> Any:
            seen.extend(data.seen)
            return super().fit(prunable, mask, lesson)

    verdict = Verdict(prunable, data, Watching(), nothing)
    verdict(some_of(prunable), ROWS, tuned=True)
    assert len(seen) == 64
    assert not set(seen) & set(ROWS.tolist())


def test_masks_of_the_search_are_off_while_it_judges() -> None:
    prunable, data = PrunableModel.of(make_encoder()), Sentences()
    expected = Verdict(prunable, data, CG2(), nothing)(some_of(prunable), ROWS, tuned=True)
    forwards = Forwards(prunable, data.loss, sliced=False)
    with forwards.on():
        before = forwards(some_of(prunable, 2).float()[None], ROWS)
        found = Verdict(prunable, data, CG2(), forwards.release)(some_of(prunable), ROWS, tuned=True)
        assert torch.equal(forwards(some_of(prunable, 2).float()[None], ROWS), before)
    assert torch.equal(found, expected)


def test_a_model_without_logits_is_judged_by_its_loss() -> None:
    prunable, data = PrunableModel.of(make_encoder("PreTraining")), Sentences()
    mask = some_of(prunable)
    found = Verdict(prunable, data, None, nothing)(mask, ROWS, tuned=True)
    expected = data.loss(shrink(prunable, mask), ROWS).double()
    torch.testing.assert_close(found, expected[:, None].expand(-1, 2), rtol=1e-4, atol=1e-6)


def test_gpruner_chooses_by_it() -> None:
    config = validated(
        *("method=gpruner", "task=glue/sst2", "budget=flops", "budget.keep=0.6", "tuning.sequences=64"),
        *("optimizer.iterations=2", "optimizer.episodes=2", "optimizer.stages=2", "optimizer.chunk=8"),
    )
    prunable, data = PrunableModel.of(make_encoder()), Sentences()
    budget = make_budget(config.budget, prunable.adapter, prunable.space)
    pruning = Pruning(
        prunable=prunable,
        quick=prunable,
        data=data,
        budget=budget,
        importance=config.importance,
        tuning=config.tuning,
        seed=3,
    )
    pruned, again = (prune(pruning, config.optimizer) for _ in range(2))
    choice = pruned.found.choice
    assert set(choice["held_out"]) == {"fisher_search", "rearranged", "stages", "per_block", "search"}
    assert choice["examples"] == 22
    lowest = min(choice["held_out"][name]["divergence"] for name in choice["held_out"] if name != "search")
    if choice["chosen"] == "search":
        assert choice["held_out"]["search"]["divergence"] <= choice["held_out"][choice["start"]]["divergence"]
    else:
        assert choice["chosen"] == choice["start"]
    assert lowest > 0
    assert torch.equal(pruned.mask, again.mask)
    assert choice == again.found.choice
