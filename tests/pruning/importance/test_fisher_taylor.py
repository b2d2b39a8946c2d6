"""Mask gradients against the gradients of weights, which give the same by the chain rule, one example at a time."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from encoders import make_encoder
from policyprune.models.adapter import adapt
from policyprune.models.sequences import token_losses
from policyprune.pruning.importance.evidence import Evidence
from policyprune.pruning.importance.fisher_taylor import Fisher, Taylor
from policyprune.pruning.importance.gradients import mask_gradients
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import space_of

EXAMPLES, LENGTH = 7, 9
ROWS = [torch.tensor([4, 0, 6]), torch.tensor([1, 2, 3, 5])]
ORDER = torch.cat(ROWS)


@dataclass(frozen=True)
class Case:
    """A model, inputs of all examples and the loss of each."""

    model: Any
    inputs: dict[str, Tensor]
    labels: Tensor

    def own(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: tensor[rows] for name, tensor in self.inputs.items()}

    def loss(self, rows: Tensor) -> Tensor:
        if self.model.config.model_type == "llama":
            return token_losses(self.model, self.inputs["input_ids"][rows]).mean(-1)
        return functional.cross_entropy(self.model(**self.own(rows)).logits, self.labels[rows], reduction="none")


@pytest.fixture(params=["bert", "llama"])
def case(request: pytest.FixtureRequest, tiny_llama: Any) -> Case:
    model = make_encoder(num_labels=3) if request.param == "bert" else tiny_llama()
    torch.manual_seed(3)
    attention = torch.arange(LENGTH) < torch.tensor([9, 4, 7, 9, 3, 6, 8])[:, None]
    inputs = {"input_ids": torch.randint(5, 300, (EXAMPLES, LENGTH)), "attention_mask": attention.long()}
    return Case(model, inputs, torch.randint(3, (EXAMPLES,)))


def evidence_of(case: Case, per: str) -> Evidence:
    adapter = adapt(case.model)
    space = space_of(adapter, ["attention", "ffn"])
    return Evidence(
        prunable=PrunableModel(case.model, adapter, space),
        rows=ROWS,
        inputs=case.own,
        loss=case.loss,
        keep=0.5,
        seed=0,
        gradient_per=per,
    )


def by_weights(case: Case, rows: Tensor) -> Tensor:
    """Gradient of the mean loss of `rows` with respect to the mask (n,): sum of dL/dW * W over a unit's columns."""
    blocks = adapt(case.model).blocks
    weights = [case.model.get_submodule(block.out).weight.requires_grad_(True) for block in blocks]
    with torch.enable_grad():
        gradients = torch.autograd.grad(case.loss(rows).mean(), weights)
    parts = [(g * w).sum(0).view(b.count, b.width).sum(1) for g, w, b in zip(gradients, weights, blocks, strict=True)]
    case.model.requires_grad_(False)
    return torch.cat(parts).detach()


def assert_near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_a_row_for_each_example(case: Case) -> None:
    evidence = evidence_of(case, "example")
    expected = torch.stack([by_weights(case, torch.tensor([row])) for row in ORDER.tolist()])
    assert evidence.gradients.shape == (EXAMPLES, evidence.space.n)
    assert (evidence.gradients.dtype, evidence.gradients.requires_grad) == (torch.float32, False)
    assert_near(evidence.gradients, expected)


def test_a_row_for_each_batch(case: Case) -> None:
    assert_near(evidence_of(case, "batch").gradients, torch.stack([by_weights(case, rows) for rows in ROWS]))


def test_padding_changes_no_gradient(case: Case) -> None:
    if case.model.config.model_type == "llama":
        wide = Case(case.model, {name: t[:, :7] for name, t in case.inputs.items()}, case.labels)
        assert not torch.allclose(evidence_of(wide, "example").gradients, evidence_of(case, "example").gradients)
        return  # the causal loss counts every token
    padded = {name: functional.pad(tensor, (0, 5)) for name, tensor in case.inputs.items()}
    padded["input_ids"][padded["attention_mask"] == 0] = 17
    wide = Case(case.model, padded, case.labels)
    assert_near(evidence_of(wide, "example").gradients, evidence_of(case, "example").gradients)


@pytest.mark.parametrize("per", ["example", "batch"])
def test_fisher_is_the_mean_square_and_taylor_the_mean_size(case: Case, per: str) -> None:
    groups = [torch.tensor([row]) for row in ORDER.tolist()] if per == "example" else ROWS
    gradients = torch.stack([by_weights(case, rows) for rows in groups])
    evidence = evidence_of(case, per)
    assert_near(Fisher().score(evidence), gradients.square().mean(0))
    assert_near(Taylor().score(evidence), gradients.abs().mean(0))


def test_per_example_and_per_batch_are_not_the_same_metric(case: Case) -> None:
    by_example, by_batch = (Fisher().score(evidence_of(case, per)) for per in ("example", "batch"))
    assert (by_batch <= by_example * (1 + 1e-4) + 1e-9).sum() > 0.5 * len(by_batch)  # what cancels counts less
    assert not torch.allclose(by_example, by_batch, rtol=0.05)


def test_gradients_are_taken_where_they_are_disabled(case: Case) -> None:
    """The pipeline runs under no_grad."""
    expected = evidence_of(case, "example").gradients
    with torch.no_grad():
        assert torch.equal(evidence_of(case, "example").gradients, expected)


def test_a_unit_that_does_nothing_has_no_gradient(case: Case) -> None:
    evidence = evidence_of(case, "example")
    dead = next(block for block in evidence.adapter.blocks if (block.layer, block.kind) == (1, "ffn"))
    case.model.get_submodule(dead.out).weight.data[:, 5] = 0
    views = evidence.space.views(evidence.gradients)
    assert not views[1, "ffn"][:, 5].any()
    assert views[1, "ffn"][:, 4].any()


def test_only_the_units_of_the_space_get_gradients(case: Case) -> None:
    adapter = adapt(case.model)
    both, heads = space_of(adapter, ["attention", "ffn"]), space_of(adapter, ["attention"])
    full, part = (
        mask_gradients(PrunableModel(case.model, adapter, space), ROWS, case.loss, "example") for space in (both, heads)
    )
    expected = torch.cat([view for (_, kind), view in both.views(full).items() if kind == "attention"], 1)
    assert_near(part, expected)
