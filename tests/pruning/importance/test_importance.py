"""Metrics against slow and plain versions of themselves."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from policyprune.config.registry import names, option
from policyprune.errors import RunError
from policyprune.models.adapter import adapt
from policyprune.models.sequences import token_losses
from policyprune.pruning.importance.activations import WandaSp
from policyprune.pruning.importance.data_free import Magnitude, Random
from policyprune.pruning.importance.evidence import Evidence
from policyprune.pruning.importance.initialisation import scores_of
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import space_of
from policyprune.surgery.shrink import shrink

HEAD, GROUP, GROUPS, CHANNELS = 16, 32, 4, 48


@pytest.fixture(params=[("attention", "ffn"), ("ffn",)], ids=["all units", "channels"])
def evidence(request: pytest.FixtureRequest, tiny_llama: Any) -> Evidence:
    model = tiny_llama()
    adapter = adapt(model)
    ids = torch.randint(3, 300, (5, 11))
    rows = [torch.arange(2), torch.arange(2, 5)]

    def loss(own: Tensor) -> Tensor:
        return token_losses(model, ids[own]).mean(-1)

    space = space_of(adapter, request.param)
    return Evidence(
        prunable=PrunableModel(model, adapter, space),
        rows=rows,
        inputs=lambda own: {"input_ids": ids[own]},
        loss=loss,
        keep=0.5,
        seed=7,
    )


def naive_magnitude(layer: Any, kind: str, unit: int) -> float:
    if kind == "ffn":
        weights = [
            layer.mlp.gate_proj.weight[unit],
            layer.mlp.up_proj.weight[unit],
            layer.mlp.down_proj.weight[:, unit],
        ]
    else:
        queries = slice(unit * GROUP, (unit + 1) * GROUP)
        keys = slice(unit * HEAD, (unit + 1) * HEAD)
        attention = layer.self_attn
        weights = [
            attention.q_proj.weight[queries],
            attention.k_proj.weight[keys],
            attention.v_proj.weight[keys],
            attention.o_proj.weight[:, queries],
        ]
    return sum(float(weight.double().square().sum()) for weight in weights) ** 0.5


def test_magnitude_is_the_norm_of_all_that_goes_with_a_unit(evidence: Evidence) -> None:
    scores = Magnitude().score(evidence)
    expected = [
        naive_magnitude(evidence.model.model.layers[group.layer], group.kind, unit)  # type: ignore[union-attr,index]
        for group in evidence.space.groups
        for unit in range(group.count)
    ]
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def output_projection(layer: Any, kind: str) -> Any:
    return layer.self_attn.o_proj if kind == "attention" else layer.mlp.down_proj


def captured_inputs(model: Any, module: Any, batches: list[dict[str, Tensor]]) -> Tensor:
    """All tokens (N, features) that reach a module in plain forwards of the whole model."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, args, out: seen.append(args[0].flatten(0, 1)))
    for batch in batches:
        model(**batch)
    handle.remove()
    return torch.cat(seen)


def naive_wanda(model: Any, evidence: Evidence) -> dict[tuple[int, str], list[float]]:
    """Score the blocks of a layer, then zero its worst columns for good, so that later layers see the pruned input."""
    scores: dict[tuple[int, str], list[float]] = {}
    kinds = sorted({group.kind for group in evidence.space.groups})
    for index, layer in enumerate(model.model.layers):
        inputs = {kind: captured_inputs(model, output_projection(layer, kind), evidence.batches()) for kind in kinds}
        for kind in kinds:
            weight, width = output_projection(layer, kind).weight, GROUP if kind == "attention" else 1
            scores[index, kind] = [
                sum(
                    float((weight[:, j].abs() * inputs[kind][:, j].norm()).mean())
                    for j in range(unit * width, (unit + 1) * width)
                )
                for unit in range(GROUPS if kind == "attention" else CHANNELS)
            ]
            own = scores[index, kind]
            worst = sorted(range(len(own)), key=own.__getitem__)[: len(own) // 2]
            for unit in worst:
                weight[:, unit * width : (unit + 1) * width] = 0
    return scores


def test_wanda_sp_scores_each_layer_on_what_the_pruned_layers_before_it_produce(
    evidence: Evidence, tiny_llama: Any
) -> None:
    scores = WandaSp().score(evidence)
    expected = naive_wanda(tiny_llama(), evidence)
    for key, view in evidence.space.views(scores).items():
        torch.testing.assert_close(view, torch.tensor(expected[key]), rtol=1e-3, atol=1e-4)


def test_wanda_sp_of_later_layers_depends_on_what_is_kept(evidence: Evidence) -> None:
    half = evidence.space.views(WandaSp().score(evidence))
    dense = evidence.space.views(WandaSp().score(replace(evidence, keep=1.0)))
    torch.testing.assert_close(half[0, "ffn"], dense[0, "ffn"])
    assert not torch.allclose(half[2, "ffn"], dense[2, "ffn"], rtol=1e-2)


def test_no_score_changes_the_model(evidence: Evidence) -> None:
    before = evidence.model(**evidence.batches()[0]).logits
    for name in names("importance"):
        option("importance", name)().score(evidence)
    assert torch.equal(evidence.model(**evidence.batches()[0]).logits, before)


@pytest.mark.parametrize("name", names("importance"))
def test_every_importance_gives_finite_float32_scores_on_the_cpu(evidence: Evidence, name: str) -> None:
    scores = option("importance", name)().score(evidence)
    assert scores.shape == (evidence.space.n,)
    assert (scores.dtype, scores.device.type) == (torch.float32, "cpu")
    assert scores.isfinite().all()


@pytest.mark.parametrize("name", names("importance"))
def test_every_importance_scores_what_an_earlier_pruning_left(evidence: Evidence, name: str) -> None:
    mask = torch.rand(evidence.space.n) < 0.5
    evidence.space.views(mask)[1, "ffn"].zero_()
    half = shrink(evidence.prunable, mask)
    kinds = {group.kind for group in evidence.space.groups}
    evidence = replace(evidence, prunable=PrunableModel.of(half, tuple(kinds)))
    ids = evidence.inputs
    scores = option("importance", name)().score(
        replace(evidence, loss=lambda own: token_losses(half, ids(own)["input_ids"]).mean(-1))
    )
    assert scores.shape == (int(mask.sum()),)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", names("importance"))
def test_a_score_that_is_not_finite_is_refused_by_name(evidence: Evidence, name: str, value: float) -> None:
    evidence.model.model.layers[1].mlp.down_proj.weight[:, 3] = value  # type: ignore[union-attr,index,operator]
    if name in ("random", "constant"):
        assert scores_of(option("importance", name)(), evidence).isfinite().all()
        return
    with pytest.raises(RunError) as raised:
        scores_of(option("importance", name)(), evidence)
    assert str(raised.value).startswith(f"importance: {name} gives ")
    assert "\n" not in str(raised.value)
    if name in ("magnitude", "wanda_sp"):
        assert "the first in the ffn of layer 1; " in str(raised.value)


def test_random_scores_depend_on_the_seed_alone(evidence: Evidence) -> None:
    first = Random().score(evidence)
    torch.rand(3)
    assert torch.equal(Random().score(evidence), first)
    assert not torch.equal(Random().score(replace(evidence, seed=8)), first)
    assert ((first >= 0) & (first < 1)).all()
