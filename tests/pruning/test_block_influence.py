"""Block Influence against plain forwards of the whole model, and the mask that follows from it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from policyprune.models.adapter import adapt
from policyprune.pruning.importance.activations import BlockInfluence
from policyprune.pruning.importance.evidence import Evidence
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import space_of


def padded() -> list[dict[str, Tensor]]:
    """Two batches, the first with padding."""
    attention = torch.ones(2, 12, dtype=torch.long)
    attention[1, 7:] = 0
    first = {"input_ids": torch.randint(5, 300, (2, 12)), "attention_mask": attention}
    return [first, {"input_ids": torch.randint(5, 300, (3, 9))}]


def evidence_of(model: Any, batches: list[dict[str, Tensor]], kinds: list[str]) -> Evidence:
    adapter = adapt(model)
    rows = [torch.tensor([index]) for index in range(len(batches))]
    space = space_of(adapter, kinds).units
    return Evidence(
        prunable=PrunableModel(model, adapter, space),
        rows=rows,
        inputs=lambda own: batches[int(own)],
        loss=lambda own: own,
        keep=0.5,
        seed=0,
    )


def plain(model: Any, batches: list[dict[str, Tensor]]) -> list[float]:
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


@pytest.mark.parametrize("kinds", [["layer"], ["attention", "ffn"]])
def test_the_scores_of_a_layer_add_up_to_its_influence(tiny_llama: Any, kinds: list[str]) -> None:
    model, batches = tiny_llama(), padded()
    evidence = evidence_of(model, batches, kinds)
    scores = BlockInfluence().score(evidence)
    found = space_of(evidence.adapter, ["layer"]).pooled(scores)
    expected = torch.tensor(plain(model, batches))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert len(expected.unique()) == 3
    for group, view in zip(evidence.space.groups, evidence.space.views(scores).values(), strict=True):
        assert view.unique().shape == (1,), f"{group} has units that differ"


def test_padding_does_not_count(tiny_llama: Any) -> None:
    model, batches = tiny_llama(), padded()
    scores = BlockInfluence().score(evidence_of(model, batches, ["layer"]))
    batches[0]["input_ids"][1, 7:] = 4
    assert torch.equal(BlockInfluence().score(evidence_of(model, batches, ["layer"])), scores)


def test_a_layer_that_passes_its_input_on_has_no_influence(tiny_llama: Any) -> None:
    model, batches = tiny_llama(), padded()
    model.model.layers[1].self_attn.o_proj.weight.zero_()
    model.model.layers[1].mlp.down_proj.weight.zero_()
    evidence = evidence_of(model, batches, ["layer"])
    found = space_of(evidence.adapter, ["layer"]).pooled(BlockInfluence().score(evidence))
    assert found[1] == pytest.approx(0, abs=1e-9)
    assert found[[0, 2]].min() > 1e-3
