"""FLAP and Block Influence against their formulas, computed from plain forwards of the whole model."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from policyprune.models.adapter import adapt
from policyprune.pruning.budget.budget import Budget
from policyprune.pruning.budget.selection import one_shot_mask
from policyprune.pruning.importance.activations import BlockInfluence, Flap, Moments
from policyprune.pruning.importance.evidence import Evidence
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import space_of

GROUP, GROUPS = 32, 4


def evidence_of(
    model: Any, batches: list[dict[str, Tensor]], kinds: tuple[str, ...] = ("attention", "ffn")
) -> Evidence:
    adapter = adapt(model)
    space = space_of(adapter, kinds).units
    rows = [torch.tensor([index]) for index in range(len(batches))]
    return Evidence(
        prunable=PrunableModel(model, adapter, space),
        rows=rows,
        inputs=lambda own: batches[int(own)],
        loss=lambda own: own,
        keep=0.5,
        seed=0,
    )


def padded_batches() -> list[dict[str, Tensor]]:
    """Two batches, the first with padding."""
    attention = torch.ones(2, 12, dtype=torch.long)
    attention[1, 7:] = 0
    padded = {"input_ids": torch.randint(5, 300, (2, 12)), "attention_mask": attention}
    return [padded, {"input_ids": torch.randint(5, 300, (3, 9))}]


def inputs_of(model: Any, module: Any, batches: list[dict[str, Tensor]]) -> Tensor:
    """Inputs (tokens, features) of a module, padding left out."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    for batch in batches:
        model(**batch)
    handle.remove()
    masks = [batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool() for batch in batches]
    return torch.cat([x[mask] for x, mask in zip(seen, masks, strict=True)]).double()


def test_scores_are_the_standardised_fluctuation_times_the_squared_column_norm(tiny_llama: Any) -> None:
    model, batches = tiny_llama(), padded_batches()
    evidence = evidence_of(model, batches)
    views = evidence.space.views(Flap().score(evidence))
    for index, layer in enumerate(model.model.layers):
        for kind, module in (("attention", layer.self_attn.o_proj), ("ffn", layer.mlp.down_proj)):
            x, weight = inputs_of(model, module, batches), module.weight.double()
            fluctuation = [float(x[:, j].var() * weight[:, j].norm() ** 2) for j in range(x.shape[1])]
            values = torch.tensor(fluctuation, dtype=torch.float64)
            standard = (values - values.mean()) / values.std()
            expected = standard.view(GROUPS, GROUP).mean(1) if kind == "attention" else standard
            torch.testing.assert_close(views[index, kind], expected.float(), rtol=1e-3, atol=1e-4)


def test_moments_merge_to_the_variance_of_all_samples_also_far_from_zero() -> None:
    x = torch.randn(50, 3, dtype=torch.float64) + 1e6
    moments = Moments()
    for part in (x[:1], x[1:1], x[1:30], x[30:]):
        moments.add(part)
    torch.testing.assert_close(moments.variance(), x.var(0), rtol=1e-6, atol=0)


def test_standardised_scores_are_compared_as_they_are_and_others_per_cost() -> None:
    cost, pool = torch.tensor([10.0, 10.0, 1.0, 1.0]).double(), torch.zeros(4, dtype=torch.long)
    limit = torch.tensor([11.0]).double()
    budget = Budget(cost=cost, segment=pool, limit=limit, pool=pool, pool_limit=limit, keep=0.5)
    metric = torch.tensor([3.0, -2.0, 2.0, -1.0])
    assert one_shot_mask(metric, budget, per_cost=False).tolist() == [True, False, True, False]
    cheap = replace(budget, limit=limit - 9, pool_limit=limit - 9)
    assert one_shot_mask(metric, cheap, per_cost=True).tolist() == [False, False, True, True]
    tight = torch.tensor([-3.0, -0.1, -0.2, -5.0])
    assert one_shot_mask(tight, budget, per_cost=False).tolist() == [False, True, True, False]
    assert one_shot_mask(torch.tensor([5.0, 4.0, 3.0, 2.0]), budget, per_cost=True).tolist() != [
        True,
        True,
        False,
        False,
    ]


def plain_influence(model: Any, batches: list[dict[str, Tensor]]) -> list[float]:
    """1 - the mean cosine, a token at a time, from the hidden states around each layer."""
    cosines: list[list[float]] = [[] for _ in model.model.layers]

    def note(index: int) -> Any:
        def hook(module: Any, args: Any, out: Any) -> None:
            states[index] = (args[0], out[0] if isinstance(out, tuple) else out)

        return hook

    states: dict[int, tuple[Tensor, Tensor]] = {}
    handles = [layer.register_forward_hook(note(index)) for index, layer in enumerate(model.model.layers)]
    for batch in batches:
        model(**batch)
        real = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        for index, (before, after) in states.items():
            for sequence, position in real.nonzero().tolist():
                x, y = before[sequence, position].double(), after[sequence, position].double()
                cosines[index].append(float(x @ y / (x.norm() * y.norm())))
    for handle in handles:
        handle.remove()
    return [1 - sum(own) / len(own) for own in cosines]


@pytest.mark.parametrize("kinds", [("layer",), ("attention", "ffn")])
def test_the_scores_of_a_layer_add_up_to_its_influence(tiny_llama: Any, kinds: tuple[str, ...]) -> None:
    model, batches = tiny_llama(), padded_batches()
    evidence = evidence_of(model, batches, kinds)
    scores = BlockInfluence().score(evidence)
    found = space_of(evidence.adapter, ["layer"]).pooled(scores)
    expected = torch.tensor(plain_influence(model, batches))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert len(expected.unique()) == 3
    for group, view in zip(evidence.space.groups, evidence.space.views(scores).values(), strict=True):
        assert view.unique().shape == (1,), f"{group} has units that differ"


def test_padding_does_not_count(tiny_llama: Any) -> None:
    model, batches = tiny_llama(), padded_batches()
    scores = BlockInfluence().score(evidence_of(model, batches, ("layer",)))
    batches[0]["input_ids"][1, 7:] = 4
    assert torch.equal(BlockInfluence().score(evidence_of(model, batches, ("layer",))), scores)


def test_a_layer_that_passes_its_input_on_has_no_influence(tiny_llama: Any) -> None:
    model, batches = tiny_llama(), padded_batches()
    model.model.layers[1].self_attn.o_proj.weight.zero_()
    model.model.layers[1].mlp.down_proj.weight.zero_()
    evidence = evidence_of(model, batches, ("layer",))
    found = space_of(evidence.adapter, ["layer"]).pooled(BlockInfluence().score(evidence))
    assert found[1] == pytest.approx(0, abs=1e-9)
    assert found[[0, 2]].min() > 1e-3
