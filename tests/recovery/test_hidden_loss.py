"""The distance between hidden states: layers that answer to each other, padding, and what cannot be compared."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encoders import make_encoder
from policyprune.errors import UsageError
from policyprune.pruning.prunable import PrunableModel
from policyprune.recovery.losses import answering, hidden_distance
from policyprune.recovery.material import Material, of_text
from policyprune.recovery.options import Distill
from policyprune.recovery.recover import Recovered, Surroundings, recover
from policyprune.surgery.shrink import remaining_layers, shrink
from policyprune.tasks.text_sources import sources_of

FAST = {"steps": 24, "length": 16, "held_out": 16, "evaluations": 2, "dtype": "float32", "learning_rate": 3e-3}
IDS = torch.arange(24).view(2, 12)


@pytest.fixture(scope="module")
def material(stories: Any, tiny_tokenizer: Any) -> Material:
    return of_text(Distill(**FAST), sources_of(stories), tiny_tokenizer, None)


def recovered(model: Any, options: Distill, material: Material, folder: Path, dense: Any, **more: Any) -> Recovered:
    around = Surroundings(teacher=dense, folder=folder, keep=0.6, seed=0, report=lambda values, step: None, **more)
    return recover(model, options, material, around)


def distance(model: Any, dense: Any, layers: list[int], **inputs: Any) -> float:
    batch = {"input_ids": IDS, **inputs}
    outs = [own(**batch, output_hidden_states=True) for own in (model, dense)]
    return float(hidden_distance(*outs, batch, layers))


@given(
    st.integers(1, 8).flatmap(lambda count: st.tuples(st.just(count), st.sets(st.integers(0, count - 1), min_size=1)))
)
def test_a_layer_answers_to_the_last_one_before_the_next(drawn: tuple[int, set[int]]) -> None:
    count, kept = drawn[0], sorted(drawn[1])
    expected = [
        max(layer for layer in range(count) if max(k for k in kept if k <= max(layer, kept[0])) == own) for own in kept
    ]
    assert answering(kept, count) == expected


@pytest.mark.parametrize("lost", [{1}, {0}, {3}, {1, 2}])
def test_layers_that_are_gone_are_passed_by(lost: set[int], tiny_llama: Any) -> None:
    """The dense model whose blocks add nothing in those layers has the hidden states of the shrunk one."""
    dense = tiny_llama(num_hidden_layers=4)
    prunable = PrunableModel.of(dense)
    mask = torch.ones(prunable.units.n, dtype=torch.bool)
    for (layer, _), view in prunable.views(mask).items():
        view.fill_(layer not in lost)
    smaller, kept = shrink(prunable, mask), remaining_layers(prunable, mask)
    assert kept == [layer for layer in range(4) if layer not in lost]
    silent = tiny_llama(num_hidden_layers=4)
    for layer in lost:
        silent.model.layers[layer].self_attn.o_proj.weight.zero_()
        silent.model.layers[layer].mlp.down_proj.weight.zero_()
    assert distance(smaller, silent, answering(kept, 4)) == pytest.approx(0, abs=1e-9)
    assert distance(smaller, dense, answering(kept, 4)) > 1e-3


def test_the_distance_is_a_share_without_padding() -> None:
    first, second = (make_encoder(seed=seed) for seed in (0, 1))
    mask = torch.ones_like(IDS)
    mask[1, 7:] = 0
    found = distance(first, second, [0, 1, 2], attention_mask=mask)
    expected = torch.zeros(3)
    states = [own(IDS, attention_mask=mask, output_hidden_states=True).hidden_states[1:] for own in (first, second)]
    for layer, (own, other) in enumerate(zip(*states, strict=True)):
        rows = [(own[r, c] - other[r, c]).norm() ** 2 / other[r, c].norm() ** 2 for r, c in mask.nonzero().tolist()]
        expected[layer] = torch.stack(rows).mean()
    assert found == pytest.approx(float(expected.mean()), rel=1e-5)
    changed = IDS.clone()
    changed[1, 7:] = 3
    batch = {"input_ids": changed, "attention_mask": mask}
    outs = [own(**batch, output_hidden_states=True) for own in (first, second)]
    assert float(hidden_distance(*outs, batch, [0, 1, 2])) == pytest.approx(found, rel=1e-5)


def test_it_brings_hidden_states_together(smaller: Any, dense: Any, material: Material, tmp_path: Path) -> None:
    layers = list(range(len(dense.model.layers)))
    apart = [distance(smaller, dense, layers)]
    for weight in (0.0, 2.0):
        found = recovered(
            smaller, Distill(**FAST, task_loss=0.5, hidden_loss=weight), material, tmp_path / str(weight), dense
        )
        assert found.facts["outcome"] == "recovered"
        apart.append(distance(found.model, dense, layers))
    assert apart[2] < 0.9 * min(apart[0], apart[1])


def test_layers_and_channels_that_answer_to_none_are_refused(tiny_llama: Any, material: Material, folder: Path) -> None:
    options = replace(Distill(**FAST), hidden_loss=1.0)
    vocabulary = {"vocab_size": 300}
    deep, shallow = tiny_llama(num_hidden_layers=3, **vocabulary), tiny_llama(num_hidden_layers=2, **vocabulary)
    with pytest.raises(UsageError, match=r"^recovery.hidden_loss: the smaller model has 2 layers, the dense one 3"):
        recovered(shallow, options, material, folder, deep)
    narrow = tiny_llama(num_hidden_layers=3, hidden_size=16, **vocabulary)
    with pytest.raises(UsageError, match=r"^recovery.hidden_loss: hidden states of 16 channels are not those of"):
        recovered(narrow, options, material, folder, deep)
