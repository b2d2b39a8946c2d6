"""FLAP's compensation: what the bias is, that it helps, and that it survives surgery and saving, in every family."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from policyprune.evaluation.fresh_process import logits_elsewhere
from policyprune.models.examples import EXAMPLES, example
from policyprune.pruning.compensation import Compensation
from policyprune.pruning.mask_file import load_compensation, load_mask, save_mask
from policyprune.surgery.checkpoint import auto_class, save_checkpoint
from policyprune.surgery.equivalence import (
    TOLERANCE,
    Probe,
    equal_widths,
    gap,
    masks,
    outputs,
    probe_of,
    random_mask,
)
from policyprune.surgery.shrink import shrink
from policyprune.tuning.options import BiasCompensation
from policyprune.tuning.teacher_student import Lesson

CONFIG = BiasCompensation(sequences=4)


def compensated(
    subject: Probe, mask: Tensor, batches: Any = None, first_token: bool = False
) -> tuple[Compensation, Any]:
    fitted = CONFIG.fit(subject, mask, Lesson(batches or [{"input_ids": subject.ids}], first_token))
    return fitted.compensation, fitted.report


@contextmanager
def biased(subject: Probe, mask: Tensor, compensation: Compensation) -> Iterator[None]:
    """The masked model with the biases added behind the output projections.

    A mask silences the own bias of a block that it empties; one that is compensated has it, as a part of its mean.
    """
    handles = []
    for block in subject.adapter.blocks:
        key = block.layer, block.kind
        bias = compensation.biases.get(key)
        if bias is not None:
            module = subject.model.get_submodule(block.out)
            silenced = subject.adapter.removable_layers and not subject.space.views(mask)[key].any()
            own = module.bias if silenced and isinstance(module.bias, Tensor) else 0
            handles.append(module.register_forward_hook(lambda _, args, out, bias=bias + own: out + bias))
    yield
    for handle in handles:
        handle.remove()


@torch.no_grad()
def masked(subject: Probe, mask: Tensor, compensation: Compensation) -> Tensor:
    with subject.masking() as masking, biased(subject, mask, compensation):
        masking.set(mask[None].float())
        return outputs(subject.model, subject.ids)


def pruned(subject: Probe, mask: Tensor, compensation: Compensation) -> Any:
    return shrink(subject, mask, compensation)


def input_of(subject: Probe, out: str) -> Tensor:
    seen: list[Tensor] = []
    handle = subject.model.get_submodule(out).register_forward_hook(lambda _, args, y: seen.append(args[0]))
    subject.model(subject.ids)
    handle.remove()
    return seen[0].double()


def test_the_bias_is_the_mean_output_of_the_removed_units() -> None:
    subject = probe_of(example("llama"))
    mask = equal_widths(subject.space)
    compensation, report = compensated(subject, mask)
    assert compensation.scales is None
    assert not compensation.weights
    for block, row in zip(subject.adapter.blocks, report, strict=True):
        own = subject.space.views(mask)[block.layer, block.kind]
        gone = (~own).float().repeat_interleave(block.width).double()
        weight = subject.model.get_submodule(block.out).weight.double()  # type: ignore[union-attr,operator]
        lost = (input_of(subject, block.out) * gone) @ weight.T
        mean = lost.flatten(0, 1).mean(0)
        torch.testing.assert_close(compensation.biases[block.layer, block.kind].double(), mean, rtol=1e-3, atol=1e-4)
        assert row["binary_error"] == pytest.approx(float(lost.square().sum()), rel=1e-4)
        assert row["error"] == pytest.approx(float((lost - mean).square().sum()), rel=1e-3)


def test_the_compensated_block_has_the_dense_block_s_mean_output() -> None:
    """The first block's inputs are the dense ones, so its mean is met exactly, and padding has no say."""
    subject = probe_of(example("llama"))
    attention = torch.ones_like(subject.ids)
    attention[1, 6:] = 0
    batch = {"input_ids": subject.ids, "attention_mask": attention}
    mask = equal_widths(subject.space)
    compensation, _ = compensated(subject, mask, [batch])
    first = subject.adapter.blocks[0]
    seen: list[Tensor] = []
    smaller = pruned(subject, mask, compensation)
    for model in (subject.model, smaller):
        handle = model.get_submodule(first.out).register_forward_hook(lambda _, args, y: seen.append(y))
        model(**batch)
        handle.remove()
    dense, ours = (y[attention.bool()].mean(0) for y in seen)
    torch.testing.assert_close(ours, dense, rtol=1e-3, atol=1e-4)


def test_a_classifier_s_last_layer_is_compensated_for_its_first_token() -> None:
    subject = probe_of(example("bert"))
    mask = equal_widths(subject.space)
    everywhere, first = (compensated(subject, mask, first_token=flag)[0].biases for flag in (False, True))
    same = {key for key in everywhere if torch.equal(everywhere[key], first[key])}
    assert {layer for layer, _ in set(everywhere) - same} == {len(subject.adapter.layers) - 1}


def test_only_blocks_that_lose_units_are_compensated() -> None:
    subject = probe_of(example("llama"))
    mask = torch.ones(subject.space.n, dtype=torch.bool)
    assert compensated(subject, mask) == (Compensation(), [])
    subject.space.views(mask)[1, "ffn"][3] = False
    assert set(compensated(subject, mask)[0].biases) == {(1, "ffn")}


@pytest.mark.parametrize("name", EXAMPLES)
def test_shrunk_and_compensated_is_masked_and_compensated(name: str) -> None:
    subject = probe_of(example(name))
    before = outputs(subject.model, subject.ids)
    for mask in masks(subject).values():
        compensation, report = compensated(subject, mask)
        assert all(row["error"] <= row["binary_error"] for row in report)
        expected = masked(subject, mask, compensation)
        assert gap(expected, subject.masked_outputs(mask)) > 10 * TOLERANCE  # the biases show
        assert gap(outputs(pruned(subject, mask, compensation), subject.ids), expected) < TOLERANCE
    assert torch.equal(outputs(subject.model, subject.ids), before)


def test_checkpoints_of_every_family_reload_with_their_biases(tmp_path: Path) -> None:
    expected, jobs = {}, {}

    def save(label: str, subject: Probe, smaller: Any, wanted: Tensor) -> None:
        folder = tmp_path / str(len(jobs))
        save_checkpoint(smaller, None, subject.adapter, folder)
        jobs[folder] = auto_class(smaller), subject.ids
        expected[folder] = label, wanted

    for name in EXAMPLES:
        subject = probe_of(example(name))
        own = masks(subject)
        for kind in ("middle layer empty", "equal widths"):
            compensation, _ = compensated(subject, own[kind])
            smaller = pruned(subject, own[kind], compensation)
            save(f"{name}, {kind}", subject, smaller, masked(subject, own[kind], compensation))
        half = probe_of(smaller)  # a second pruning keeps the biases of the first
        second = random_mask(half.space, without=[(1, "attention")])
        save(f"{name}, twice", half, shrink(half, second), half.masked_outputs(second))
    found = logits_elsewhere(jobs)
    gaps = {label: gap(found[folder], wanted) for folder, (label, wanted) in expected.items()}
    assert max(gaps.values()) < TOLERANCE, max(gaps, key=gaps.__getitem__)


def test_the_mask_file_holds_all_that_makes_the_same_model_again(tmp_path: Path) -> None:
    subject = probe_of(example("llama"))
    mask = random_mask(subject.space)
    scales = mask * (0.5 + torch.rand(subject.space.n))
    compensation = Compensation(scales, biases=compensated(subject, mask)[0].biases)
    path = tmp_path / "mask.safetensors"
    save_mask(path, mask, subject.space, mask.float(), compensation)
    space, kept = load_mask(path)
    again = load_compensation(path, space)
    assert again is not None
    one, other = (outputs(pruned(subject, mask, own), subject.ids) for own in (compensation, again))
    assert torch.equal(kept, mask)
    assert torch.equal(one, other)
    with subject.masking() as masking, biased(subject, mask, again):
        masking.set(scales[None])
        assert gap(one, outputs(subject.model, subject.ids)) < TOLERANCE
    save_mask(path, mask, subject.space, mask.float())
    assert load_compensation(path, space) is None
    assert not [name for name in load_file(path) if name.endswith(("scale", "bias", "weight"))]
