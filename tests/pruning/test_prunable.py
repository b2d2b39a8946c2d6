"""The dense model with its units: what is asked of it again and again, against plain versions of the same."""

from typing import Any

import pytest
import torch

from policyprune.errors import UsageError
from policyprune.models.examples import EXAMPLES, example
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import space_of

GRANULARITIES = [("attention", "ffn"), ("ffn",), ("layer",), ("attention", "attention_block", "ffn_block")]


@pytest.mark.parametrize("name", EXAMPLES)
def test_any_model_of_a_known_family_has_units(name: str) -> None:
    prunable = PrunableModel.of(example(name))
    assert prunable.units == prunable.space
    assert prunable.prunable_blocks == list(prunable.adapter.blocks) == list(prunable.blocks.values())
    assert not prunable.has_hidden_units


@pytest.mark.parametrize("units", GRANULARITIES)
def test_a_mask_is_over_the_heads_and_channels_of_the_space(tiny_llama: Any, units: tuple[str, ...]) -> None:
    prunable = PrunableModel.of(tiny_llama(num_hidden_layers=4), units, spared=(0.25, 0))
    assert prunable.space == space_of(prunable.adapter, units, (0.25, 0))
    mask = torch.rand(prunable.units.n, generator=torch.Generator().manual_seed(1))
    views = prunable.views(mask > 0.5)
    assert [(block.layer, block.kind) for block in prunable.prunable_blocks] == list(views)
    assert {layer for layer, _ in views} == {1, 2, 3}
    counts = prunable.kept_counts(mask > 0.5)
    assert list(counts) == list(prunable.blocks)
    for key, block in prunable.blocks.items():
        assert counts[key] == (int(views[key].sum()) if key in views else block.count)


def test_hidden_channels_belong_to_no_block(tiny_llama: Any) -> None:
    prunable = PrunableModel.of(tiny_llama(), ("hidden",))
    assert prunable.has_hidden_units
    assert prunable.prunable_blocks == []
    mask = torch.zeros(prunable.units.n)
    assert prunable.kept_counts(mask) == {key: block.count for key, block in prunable.blocks.items()}


def test_it_computes_under_a_mask_inside_the_block_alone(tiny_llama: Any) -> None:
    prunable = PrunableModel.of(tiny_llama())
    ids = torch.randint(3, 300, (2, 9))
    masks = torch.rand(2, prunable.units.n, generator=torch.Generator().manual_seed(2)) < 0.6
    dense = prunable.model(ids).logits
    with prunable.masked(masks) as model:
        together = model(ids).logits
    for row in (0, 1):
        with prunable.masked(masks[row]) as model:
            torch.testing.assert_close(model(ids[row : row + 1]).logits, together[row : row + 1])
    assert not torch.allclose(together, dense)
    with prunable.masking() as masking:
        assert torch.equal(prunable.model(ids).logits, dense)
        masking.set(masks.float())
        assert torch.equal(prunable.model(ids).logits, together)
    assert torch.equal(prunable.model(ids).logits, dense)


def test_the_same_units_of_another_model(tiny_llama: Any) -> None:
    prunable, other = PrunableModel.of(tiny_llama()), tiny_llama()
    moved = prunable.on(other)
    assert moved.model is other
    assert (moved.adapter, moved.space) == (prunable.adapter, prunable.space)


def test_the_structure_is_enough(tiny_llama: Any) -> None:
    with torch.device("meta"):
        empty = type(tiny_llama())(tiny_llama().config)
    assert PrunableModel.of(empty).space == PrunableModel.of(tiny_llama()).space


def test_what_leaves_nothing_is_refused(tiny_llama: Any) -> None:
    with pytest.raises(UsageError, match=r"granularity\.spared"):
        PrunableModel.of(tiny_llama(num_hidden_layers=1), spared=(0.5, 0.4))
