"""Local pruning: each block's own least squares, behind pruned layers or in the dense model."""

from typing import Any

import pytest
import torch
from torch import Tensor

from policyprune.models.examples import EXAMPLES, example
from policyprune.models.layerwise import columns_of, projection
from policyprune.pruning.compensation import Compensation
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.second_order.elimination import best_units
from policyprune.pruning.second_order.least_squares import LeastSquares
from policyprune.surgery.equivalence import Probe, outputs, probe_of, random_mask
from policyprune.surgery.shrink import shrink
from policyprune.tuning.options import LocalPruning
from policyprune.tuning.teacher_student import Fitted, Lesson


def batches_of(count: int = 4) -> list[dict[str, Tensor]]:
    batches = [{"input_ids": torch.randint(5, 300, (6, 20))} for _ in range(count)]
    attention = torch.ones(6, 20, dtype=torch.long)
    attention[2, 11:] = 0
    return [{**batches[0], "attention_mask": attention}, *batches[1:]]


def pruned(subject: PrunableModel, mask: Tensor, batches: list[dict[str, Tensor]], **options: Any) -> Fitted:
    found: Fitted = LocalPruning(**options).fit(subject, mask, Lesson(batches))
    return found


def plain_squares(model: Any, out: str, weight: Tensor, batches: list[dict[str, Tensor]]) -> LeastSquares:
    """Sums over what reaches a module in plain forwards, padding left out."""
    squares = LeastSquares.of(weight)
    seen: list[Tensor] = []
    handle = model.get_submodule(out).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for batch in batches:
        model(**batch)
    handle.remove()
    for x, batch in zip(seen, batches, strict=True):
        rows = x[batch.get("attention_mask", torch.ones(x.shape[:2])).bool()]
        squares.add(rows, rows @ weight.T)
    return squares


@pytest.fixture
def llama(tiny_llama: Any) -> Probe:
    return probe_of(tiny_llama(num_hidden_layers=3, attention_bias=True, mlp_bias=True))


@pytest.mark.parametrize("inputs", ["pruned", "dense"])
def test_every_block_has_its_best_units_and_the_ridge_solution(inputs: str, llama: Probe) -> None:
    """Against plain forwards of the dense model, or of the one whose earlier layers are pruned."""
    mask, batches = random_mask(llama.space), batches_of()
    found = pruned(llama, mask, batches, inputs=inputs, ridge=0.05)
    views = llama.views(found.mask)
    assert {key: int(view.sum()) for key, view in views.items()} == llama.kept_counts(mask)
    for block in llama.adapter.blocks:
        key = block.layer, block.kind
        if key not in found.compensation.weights:
            assert views[key].all() or not views[key].any()
            continue
        weight, _ = projection(llama.model, block)
        earlier = torch.ones_like(mask)
        for other, view in llama.units.views(earlier).items():
            if inputs == "pruned" and other[0] < block.layer:
                view.copy_(views[other])
        weights = {k: v for k, v in found.compensation.weights.items() if inputs == "pruned" and k[0] < block.layer}
        before = shrink(llama, earlier, Compensation(weights=weights))
        squares = plain_squares(before, block.out, weight, batches)
        kept = best_units(*squares.damped(0.05), block.width, int(views[key].sum()))
        assert views[key].nonzero().flatten().tolist() == kept.tolist()
        expected = squares.solve(0.05, columns_of(block, kept))
        assert expected is not None
        torch.testing.assert_close(found.compensation.weights[key].double(), expected, rtol=1e-3, atol=1e-4)


def test_reported_errors_are_those_of_the_blocks_and_exchanges_lower_them(llama: Probe) -> None:
    mask, batches = random_mask(llama.space), batches_of()
    plain = pruned(llama, mask, batches, inputs="dense", ridge=1e-6, together=2)
    more = pruned(llama, mask, batches, inputs="dense", ridge=1e-6, together=2, exchanges=20)
    for row, better in zip(plain.report, more.report, strict=True):
        key = row["layer"], row["kind"]
        block = llama.blocks[key]
        weight, _ = projection(llama.model, block)
        squares = plain_squares(llama.model, block.out, weight, batches)
        full = torch.zeros_like(weight).double()
        kept = llama.views(plain.mask)[key].nonzero().flatten()
        full[:, columns_of(block, kept)] = plain.compensation.weights[key].double()
        assert row["error"] == pytest.approx(squares.error(full), rel=1e-3, abs=1e-4)
        assert row["error"] <= row["binary_error"]
        assert better["error"] < row["error"] if better["exchanges"] else better["error"] == row["error"]
    assert sum(row["exchanges"] for row in more.report) > 0


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_family_can_be_pruned_locally(name: str) -> None:
    subject = probe_of(example(name))
    mask, ids = random_mask(subject.space), torch.randint(5, 90, (3, 12))
    found = pruned(subject, mask, [{"input_ids": ids}], together=4, exchanges=3)
    assert subject.kept_counts(found.mask) == subject.kept_counts(mask)
    smaller = outputs(shrink(subject, found.mask, found.compensation), ids)
    assert bool(smaller.isfinite().all())
    nothing = pruned(subject, torch.ones_like(mask), [{"input_ids": ids}])
    assert nothing.mask.all()
    assert not nothing.compensation.weights


def test_blocks_whose_activations_are_no_numbers_keep_what_was_found(llama: Probe) -> None:
    mask, batches = random_mask(llama.space), batches_of()
    llama.model.get_submodule("model.layers.1.input_layernorm").weight.data.fill_(torch.nan)
    found = pruned(llama, mask, batches)
    for (layer, kind), view in llama.views(found.mask).items():
        if layer >= 1:
            assert torch.equal(view, llama.views(mask)[layer, kind])
            assert (layer, kind) not in found.compensation.weights
    assert {row["outcome"] for row in found.report if row["layer"] >= 1} == {"no solution"}
