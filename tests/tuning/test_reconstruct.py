"""New output projections: the ridge solution, what they improve, and the model that shrinking makes of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import residuals
from policyprune.models.adapter import adapt
from policyprune.models.examples import EXAMPLES, example
from policyprune.pruning.compensation import Compensation
from policyprune.pruning.mask_file import load_compensation, save_mask
from policyprune.pruning.second_order.elimination import eliminate
from policyprune.pruning.second_order.least_squares import LeastSquares
from policyprune.pruning.space import space_of
from policyprune.surgery.equivalence import Probe, equal_widths, outputs, probe_of, random_mask
from policyprune.surgery.shrink import shrink
from policyprune.tuning.options import CG2, Reconstruct
from policyprune.tuning.teacher_student import Lesson

SCALES = CG2(sequences=8, damp=1e-6, tolerance=1e-9, iterations=400, limit=1e3)


def batches_of(count: int = 3) -> list[dict[str, Tensor]]:
    batches = [{"input_ids": torch.randint(5, 300, (6, 20))} for _ in range(count)]
    attention = torch.ones(6, 20, dtype=torch.long)
    attention[2, 11:] = 0
    return [{**batches[0], "attention_mask": attention}, *batches[1:]]


def reconstructed(
    subject: Probe,
    mask: Tensor,
    batches: list[dict[str, Tensor]],
    ridge: float = 1e-4,
    first_token: bool = False,
    residual: float = 0.0,
) -> tuple[Compensation, Any]:
    config = Reconstruct(sequences=8, ridge=[ridge], residual=residual, reselect=False)
    fitted = config.fit(subject, mask, Lesson(batches, first_token))
    return fitted.compensation, fitted.report


def pruned(subject: Probe, mask: Tensor, compensation: Compensation | None) -> Any:
    return shrink(subject, mask, compensation)


def seen_by(model: Any, out: str, batches: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Inputs and outputs of a module in plain forwards, padding left out, in float64."""
    inputs: list[Tensor] = []
    results: list[Tensor] = []

    def hook(module: Any, args: Any, y: Tensor) -> None:
        rows = batches[len(inputs)].get("attention_mask", torch.ones(y.shape[:2])).bool()
        inputs.append(args[0][rows])
        results.append(y[rows])

    handle = model.get_submodule(out).register_forward_hook(hook)
    for batch in batches:
        model(**batch)
    handle.remove()
    return torch.cat(inputs).double(), torch.cat(results).double()


def weights_of(
    subject: Probe, layer: int, batches: list[dict[str, Tensor]], student: Any, normed: str | None = None
) -> Tensor:
    """Of the tokens of a layer, padding left out: (tokens, 1), the smaller of dense and student.

    Also over the size of what the module `normed` makes, which a norm of the block's own divides by.
    """
    rows = [b.get("attention_mask", torch.ones(b["input_ids"].shape)).bool() for b in batches]
    of_both = []
    for model in (subject.model, student):
        parts = residuals.weights(model, subject.adapter, batches)[layer]
        of_both.append(torch.cat([x[own] for x, own in zip(parts, rows, strict=True)]))
        if normed:
            of_both[-1] = of_both[-1] / seen_by(model, normed, batches)[1].square().mean(-1, keepdim=True).sqrt()
    dense, its = of_both
    return torch.minimum(dense, its)


def student_at(subject: Probe, mask: Tensor, compensation: Compensation, key: tuple[int, str]) -> Any:
    """The student when a block is fitted: those in front of it have their new weights."""
    order = [(block.layer, block.kind) for block in subject.adapter.blocks]
    done = order[: order.index(key)]
    weights = {own: weight for own, weight in compensation.weights.items() if own in done}
    return pruned(subject, mask, Compensation(weights=weights))


@pytest.fixture
def llama(tiny_llama: Any) -> Probe:
    return probe_of(tiny_llama(attention_bias=True, mlp_bias=True))


def test_the_first_block_has_the_ridge_solution(llama: Probe) -> None:
    """Against the normal equations of the same problem stacked as ordinary least squares."""
    mask, batches, ridge = equal_widths(llama.space), batches_of(), 0.05
    compensation, _ = reconstructed(llama, mask, batches, ridge)
    out = llama.adapter.blocks[0].out
    x, _ = seen_by(pruned(llama, mask, None), out, batches)
    _, y = seen_by(llama.model, out, batches)
    linear: Any = llama.model.get_submodule(out)
    old = pruned(llama, mask, None).get_submodule(out).weight.double()
    tokens = weights_of(llama, 0, batches, pruned(llama, mask, None))
    x, y = x * tokens, (y - linear.bias.double()) * tokens
    weight = (ridge * (x.T @ x).diagonal().mean()).sqrt() * torch.eye(x.shape[1], dtype=torch.float64)
    stacked = (
        torch.cat([x, weight]),
        torch.cat([y - x @ old.T, torch.zeros(len(weight), len(old))]),
    )
    expected = old + torch.linalg.lstsq(*stacked).solution.T
    torch.testing.assert_close(compensation.weights[0, "attention"].double(), expected, rtol=1e-3, atol=1e-4)


def test_reported_errors_are_those_of_the_shrunk_model(llama: Probe) -> None:
    """Each block sees what the reconstructed blocks before it produce, and aims at the dense model's output."""
    mask, batches = random_mask(llama.space), batches_of()
    compensation, report = reconstructed(llama, mask, batches)
    smaller = pruned(llama, mask, compensation)
    for row, block in zip(report, llama.adapter.blocks, strict=True):
        (_, ours), (_, dense) = (seen_by(model, block.out, batches) for model in (smaller, llama.model))
        student = student_at(llama, mask, compensation, (block.layer, block.kind))
        off = (ours - dense) * weights_of(llama, block.layer, batches, student)
        assert row["error"] == pytest.approx(float(off.square().sum()), rel=1e-2, abs=1e-3)


def test_every_block_gets_nearer_than_with_its_old_weights_and_the_first_nearer_than_with_scales(
    llama: Probe,
) -> None:
    mask, batches = equal_widths(llama.space), batches_of(16)
    _, report = reconstructed(llama, mask, batches)
    scaled = SCALES.fit(llama, mask, Lesson(batches)).report
    assert {row["outcome"] for row in report} == {"reconstructed"}
    assert all(row["error"] < row["binary_error"] for row in report)
    assert report[0]["binary_error"] == pytest.approx(scaled[0]["binary_error"], rel=1e-4)
    assert all(ours["error"] < 0.9 * theirs["error"] for ours, theirs in zip(report, scaled, strict=True))


def test_of_several_ridges_a_block_takes_what_is_best_on_tokens_held_out(llama: Probe) -> None:
    """With much text an exact fit, with little one that stays at the old weights."""
    mask = equal_widths(llama.space)

    def chosen(count: int, ridges: list[float]) -> set[float]:
        config = Reconstruct(sequences=8, ridge=ridges, residual=0.0, reselect=False)
        report = config.fit(llama, mask, Lesson(batches_of(count))).report
        return {row["ridge"] for row in report if row["outcome"] == "reconstructed"}

    assert chosen(16, [1e6, 0.1]) == {0.1}
    assert 1e6 in chosen(2, [1e-6, 1e6])


def test_new_text_is_nearer_to_the_dense_model_than_with_scales_or_with_neither(llama: Probe) -> None:
    mask, batches = equal_widths(llama.space), batches_of(8)
    compensation, _ = reconstructed(llama, mask, batches, ridge=0.01)
    scales = SCALES.fit(llama, mask, Lesson(batches)).compensation
    fresh = torch.randint(5, 300, (4, 20))
    dense = outputs(llama.model, fresh)
    with_weights, with_scales, bare = (
        float((outputs(pruned(llama, mask, e), fresh) - dense).square().mean()) for e in (compensation, scales, None)
    )
    assert with_weights < with_scales < bare


def test_a_huge_ridge_changes_nothing_and_nothing_pruned_needs_nothing(llama: Probe) -> None:
    mask, batches = equal_widths(llama.space), batches_of()
    compensation, _ = reconstructed(llama, mask, batches, ridge=1e9)
    for (layer, kind), weight in compensation.weights.items():
        block = next(b for b in llama.adapter.blocks if (b.layer, b.kind) == (layer, kind))
        old = pruned(llama, mask, None).get_submodule(block.out).weight
        torch.testing.assert_close(weight, old, rtol=1e-4, atol=1e-5)
    whole = torch.ones(llama.space.n, dtype=torch.bool)
    compensation, _ = reconstructed(llama, whole, batches)
    smaller = pruned(llama, whole, compensation)
    torch.testing.assert_close(outputs(smaller, llama.ids), outputs(llama.model, llama.ids), rtol=1e-3, atol=1e-3)


def test_without_a_solution_a_block_keeps_its_weights(llama: Probe) -> None:
    """Fewer tokens than features and no ridge: the normal matrix is singular."""
    mask = equal_widths(llama.space)
    compensation, report = reconstructed(llama, mask, [{"input_ids": llama.ids[:1, :4]}], ridge=0.0)
    failed = {(row["layer"], row["kind"]) for row in report if row["outcome"] != "reconstructed"}
    assert failed
    assert failed.isdisjoint(compensation.weights)
    assert all(row["error"] == row["binary_error"] for row in report if (row["layer"], row["kind"]) in failed)
    assert outputs(pruned(llama, mask, compensation), llama.ids).isfinite().all()


def test_padding_has_no_say_and_the_model_is_as_it_was(llama: Probe) -> None:
    mask, (padded, *rest) = equal_widths(llama.space), batches_of()
    before = outputs(llama.model, llama.ids)
    expected, _ = reconstructed(llama, mask, [padded, *rest])
    other = torch.where(padded["attention_mask"].bool(), padded["input_ids"], 77)
    found, _ = reconstructed(llama, mask, [{**padded, "input_ids": other}, *rest])
    for key, weight in expected.weights.items():
        torch.testing.assert_close(found.weights[key], weight, rtol=1e-2, atol=1e-2)
    assert torch.equal(outputs(llama.model, llama.ids), before)
    assert not [h for m in llama.model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]


def test_a_classifier_s_last_layer_is_fitted_to_its_first_token() -> None:
    subject = probe_of(example("bert"))
    mask, batches = equal_widths(subject.space), batches_of()
    everywhere, first = (reconstructed(subject, mask, batches, first_token=flag)[0].weights for flag in (False, True))
    same = {key for key in everywhere if torch.equal(everywhere[key], first[key])}
    assert {layer for layer, _ in set(everywhere) - same} == {len(subject.adapter.layers) - 1}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_family_gets_nearer_block_by_block(name: str) -> None:
    """The errors that the report gives were seen with hooks; the shrunk model makes the same ones."""
    subject = probe_of(example(name))
    mask = random_mask(subject.space, without=[(1, "attention")])
    batches = [{"input_ids": torch.randint(5, 300, (6, 20))}]
    compensation, report = reconstructed(subject, mask, batches, ridge=0.01)
    assert all(row["error"] <= row["binary_error"] for row in report)
    assert [row for row in report if row["error"] < 0.9 * row["binary_error"]]
    smaller = pruned(subject, mask, compensation)
    last = next(b for b in reversed(subject.adapter.blocks) if b.kind == "ffn")
    found = []
    for model in (smaller, subject.model):
        handle = model.get_submodule(last.norm or last.out).register_forward_hook(
            lambda _, args, y: found.append((args[0] if last.norm else y).double())
        )
        model(**batches[0])
        handle.remove()
    off = found[0] - found[1]
    if last.out_norm:
        x = torch.randn(32, dtype=torch.float64)
        off = off * subject.model.get_submodule(last.out_norm)(x) / x * x.square().mean().sqrt()
    if not last.norm:
        student = student_at(subject, mask, compensation, (last.layer, last.kind))
        off = off.flatten(0, -2) * weights_of(subject, last.layer, batches, student, last.out_norm and last.out)
        off = off * last.multiplier
    assert report[-1]["error"] == pytest.approx(float(off.square().sum()), rel=1e-2)
    assert adapt(smaller).blocks


def test_the_mask_file_holds_the_weights(tmp_path: Path, llama: Probe) -> None:
    space = space_of(llama.adapter, ["ffn"])
    subject = Probe(llama.model, llama.adapter, space, llama.ids)
    mask = random_mask(space)
    compensation, _ = reconstructed(subject, mask, batches_of())
    assert {kind for _, kind in compensation.weights} == {"ffn"}
    save_mask(tmp_path / "mask.safetensors", mask, space, mask.float(), compensation)
    again = load_compensation(tmp_path / "mask.safetensors", space)
    one, other = (outputs(pruned(subject, mask, own), llama.ids) for own in (compensation, again))
    assert torch.equal(one, other)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_block_makes_up_for_a_share_of_what_the_residual_lacks(llama: Probe, share: float) -> None:
    """The FFN of the first layer: the ridge solution towards dense output + share x what the attention lost."""
    mask, batches, ridge = equal_widths(llama.space), batches_of(8), 1e-4
    compensation, _ = reconstructed(llama, mask, batches, ridge, residual=share)
    smaller = pruned(llama, mask, compensation)
    attention, ffn = llama.adapter.blocks[:2]
    (x, _), (_, before) = (seen_by(smaller, out, batches) for out in (ffn.out, attention.out))
    (_, dense), (_, dense_before) = (seen_by(llama.model, out, batches) for out in (ffn.out, attention.out))
    linear: Any = llama.model.get_submodule(ffn.out)
    tokens = weights_of(llama, 0, batches, student_at(llama, mask, compensation, (0, "ffn")))
    x, y = x * tokens, (dense - linear.bias.double() + share * (dense_before - before)) * tokens
    old = pruned(llama, mask, None).get_submodule(ffn.out).weight.double()
    gram = x.T @ x
    amount = ridge * gram.diagonal().mean()
    expected = torch.linalg.solve(gram + amount * torch.eye(len(gram)), x.T @ y + amount * old.T).T
    torch.testing.assert_close(compensation.weights[0, "ffn"].double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "granite"])
def test_the_residual_counts_also_where_outputs_are_normed_or_scaled(name: str) -> None:
    """What the attention lost is made up for by the FFN: the residual behind the layer is nearer to the dense one."""
    subject, batches = probe_of(example(name)), batches_of(8)
    mask = torch.ones(subject.space.n)
    subject.space.views(mask)[0, "attention"][1:] = 0
    subject.space.views(mask)[0, "ffn"][18:] = 0
    path, gaps = subject.adapter.layers[0], []
    for share in (0.0, 1.0):
        smaller = pruned(subject, mask, reconstructed(subject, mask, batches, 1e-3, residual=share)[0])
        (_, ours), (_, dense) = (seen_by(model, path, batches) for model in (smaller, subject.model))
        gaps.append(float(((ours - dense) * weights_of(subject, 0, batches, subject.model)).square().sum()))
    assert gaps[1] < gaps[0]


def test_the_residual_is_whole_in_the_target_in_front_of_a_post_norm() -> None:
    """So the share changes nothing."""
    subject = probe_of(example("bert"))
    mask, batches = equal_widths(subject.space), batches_of()
    without, with_share = (reconstructed(subject, mask, batches, 0.01, residual=share)[0] for share in (0.0, 1.0))
    for key, weight in without.weights.items():
        assert torch.equal(with_share.weights[key], weight)


def test_units_are_selected_anew_at_the_same_widths(llama: Probe) -> None:
    """Against the units that second order takes for the first FFN behind the new attention."""
    mask, batches = random_mask(llama.space, keep=0.5), batches_of(12)
    config = Reconstruct(sequences=8, ridge=[0.1], residual=0.0)
    fitted = config.fit(llama, mask, Lesson(batches))
    assert not torch.equal(fitted.mask, mask.bool())
    for own, old in zip(*(llama.space.views(of.bool()).values() for of in (fitted.mask, mask)), strict=True):
        assert int(own.sum()) == int(old.sum())
    ffn = llama.adapter.blocks[1]
    only = torch.ones_like(mask)
    llama.space.views(only)[0, "attention"][:] = llama.space.views(fitted.mask)[0, "attention"]
    first = Compensation(weights={(0, "attention"): fitted.compensation.weights[0, "attention"]})
    x, _ = seen_by(pruned(llama, only, first), ffn.out, batches)
    _, y = seen_by(llama.model, ffn.out, batches)
    linear: Any = llama.model.get_submodule(ffn.out)
    tokens = weights_of(llama, 0, batches, pruned(llama, only, first))
    squares = LeastSquares.of(linear.weight)
    squares.add(x * tokens, (y - linear.bias) * tokens)
    kept = int(llama.space.views(mask)[0, "ffn"].sum())
    gone = eliminate(*squares.damped(0.1), 1, 16, ffn.count - kept).order
    assert set((~llama.space.views(fitted.mask)[0, "ffn"]).nonzero().flatten().tolist()) == set(gone.tolist())


def test_blocks_that_were_selected_anew_lose_less(llama: Probe) -> None:
    mask, batches = random_mask(llama.space, keep=0.5), batches_of(12)
    same, anew = (
        Reconstruct(sequences=8, ridge=[0.1], residual=0.0, reselect=reselect).fit(llama, mask, Lesson(batches)).report
        for reselect in (False, True)
    )
    assert sum(row["error"] for row in anew) < 0.9 * sum(row["error"] for row in same)
