"""Statistics of whole models: scores, weights, and the smaller models that they make."""

from typing import Any

import pytest
import torch
from torch import Tensor

from policyprune.models.examples import EXAMPLES, example
from policyprune.models.layerwise import columns_of, projection
from policyprune.pruning.compensation import Compensation
from policyprune.pruning.second_order import statistics
from policyprune.pruning.second_order.elimination import eliminate
from policyprune.pruning.second_order.least_squares import LeastSquares
from policyprune.pruning.second_order.statistics import RIDGE, Recipe, SecondOrder, dense_least_squares
from policyprune.surgery.equivalence import gap, outputs, probe_of, random_mask
from policyprune.surgery.shrink import shrink
from policyprune.surgery.sliced import Sliced


def batches_of(count: int = 3) -> list[dict[str, Tensor]]:
    return [{"input_ids": torch.randint(5, 300, (6, 20))} for _ in range(count)]


def test_weights_are_the_ridge_solution_of_the_units_that_stay(tiny_llama: Any) -> None:
    probe, batches = probe_of(tiny_llama()), batches_of()
    mask = random_mask(probe.space)
    found = SecondOrder.of(probe, batches, first_token=False).weights(mask)
    for block, squares in dense_least_squares(probe, batches, first_token=False):
        key = block.layer, block.kind
        if key not in found:
            continue
        kept = columns_of(block, probe.views(mask)[key].nonzero().flatten())
        amount = RIDGE * squares.gram.diagonal().mean()
        matrix = squares.gram + amount * torch.eye(len(squares.gram))
        right = squares.cross + amount * squares.weight.T
        expected = torch.linalg.solve(matrix[kept][:, kept], right[kept]).T
        torch.testing.assert_close(found[key].double(), expected, rtol=1e-3, atol=1e-4)


def test_the_score_of_a_unit_is_its_turn_and_what_it_costs(tiny_llama: Any) -> None:
    probe, batches = probe_of(tiny_llama()), batches_of()
    known = SecondOrder.of(probe, batches, first_token=False)
    for key, own in probe.units.views(known.scores()).items():
        elimination = known.blocks[key].elimination
        assert own.argsort(stable=True).tolist() == elimination.order.tolist()
        rises = elimination.error.diff()
        torch.testing.assert_close(own[elimination.order], rises.cummax(0).values.float(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", EXAMPLES)
def test_sliced_forwards_with_new_weights_are_those_of_the_smaller_model(name: str) -> None:
    probe = probe_of(example(name))
    mask, ids = random_mask(probe.space), torch.randint(5, 90, (3, 12))
    weights = SecondOrder.of(probe, [{"input_ids": ids}], first_token=False).weights(mask)
    assert weights
    sliced = Sliced(probe)
    sliced.set(mask, weights)
    smaller = shrink(probe, mask, Compensation(weights=weights))
    assert gap(outputs(sliced.model, ids), outputs(smaller, ids)) < 1e-4
    sliced.set(mask)
    assert gap(outputs(sliced.model, ids), outputs(shrink(probe, mask), ids)) < 1e-4


def test_weights_that_are_asked_for_again_are_not_solved_again(
    tiny_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe, batches = probe_of(tiny_llama()), batches_of()
    known = SecondOrder.of(probe, batches, first_token=False)
    mask = random_mask(probe.space)
    first = known.weights(mask)
    monkeypatch.setattr(SecondOrder, "_solved", None)
    assert all(known.weights(mask)[key] is weight for key, weight in first.items())


def test_the_weights_of_a_whole_mask_are_held_however_large_they_are(
    tiny_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "HELD_BYTES", 1)
    probe, batches = probe_of(tiny_llama()), batches_of()
    known = SecondOrder.of(probe, batches, first_token=False)
    mask = random_mask(probe.space)
    first = known.weights(mask)
    assert len(first) > 1
    assert all(known.weights(mask)[key] is weight for key, weight in first.items())


def test_a_recipe_says_how_tokens_count_what_the_ridge_is_and_how_many_go_at_a_time(tiny_llama: Any) -> None:
    probe, batches = probe_of(tiny_llama()), batches_of()
    recipe = Recipe(ridge=0.02, together=1, relative=False)
    known, usual = (SecondOrder.of(probe, batches, False, own) for own in (recipe, Recipe()))
    block = probe.adapter.blocks[1]
    key = block.layer, block.kind
    seen: list[Tensor] = []
    hook = probe.model.get_submodule(block.out).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for batch in batches:
        probe.model(**batch)
    hook.remove()
    x = torch.cat([own.flatten(0, 1) for own in seen])
    torch.testing.assert_close(known.blocks[key].gram, x.T @ x, rtol=1e-4, atol=1e-4)
    weight = projection(probe.model, block)[0]
    squares = LeastSquares.of(weight)
    squares.add(x, x @ weight.T)
    expected = eliminate(*squares.damped(0.02), block.width)
    assert torch.equal(known.blocks[key].elimination.order, expected.order)
    assert not torch.equal(usual.blocks[key].elimination.order, expected.order)
    mask = random_mask(probe.space)
    kept = columns_of(block, probe.views(mask)[key].nonzero().flatten())
    solved = squares.solve(0.02, kept)
    assert solved is not None
    torch.testing.assert_close(known.weights(mask)[key].double(), solved, rtol=1e-3, atol=1e-4)


def test_statistics_behind_pruned_layers_are_those_of_the_model_that_is_shrunk_so_far(tiny_llama: Any) -> None:
    probe, batches = probe_of(tiny_llama(num_hidden_layers=3)), batches_of()
    mask = random_mask(probe.space)
    known = SecondOrder.of(probe, batches, first_token=False)
    found = known.behind(batches, False, mask)
    earlier, views = torch.ones_like(mask), probe.views(mask)
    for (layer, kind), view in probe.units.views(earlier).items():
        gone = views[layer, kind].logical_not().sum()
        if layer < 2:
            view[found.blocks[layer, kind].elimination.order[:gone]] = False
    smaller = probe_of(shrink(probe, earlier, Compensation(weights=found.weights(earlier))))
    last = SecondOrder.of(smaller, batches, first_token=False)
    for kind in ("attention", "ffn"):
        torch.testing.assert_close(found.blocks[2, kind].gram, last.blocks[2, kind].gram, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(found.blocks[2, kind].gram, known.blocks[2, kind].gram, rtol=1e-2)
    for key, block in known.behind(batches, False, torch.ones_like(mask)).blocks.items():
        torch.testing.assert_close(block.gram, known.blocks[key].gram, rtol=1e-4, atol=1e-4)
