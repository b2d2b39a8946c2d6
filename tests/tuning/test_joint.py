"""Descent of all new output projections together."""

import copy
from typing import Any

import pytest
import torch

from policyprune.models.examples import example
from policyprune.pruning.prunable import PrunableModel
from policyprune.surgery.equivalence import Probe, probe_of, random_mask
from policyprune.surgery.shrink import shrink
from policyprune.tasks.divergence import Divergence
from policyprune.tasks.packing import Sequences
from policyprune.tuning.fit import fit
from policyprune.tuning.options import Joint, Reconstruct
from policyprune.tuning.teacher_student import Lesson

CONFIG = Joint(sequences=96, passes=3, learning_rate=0.02)


@pytest.fixture
def llama(tiny_llama: Any) -> Probe:
    return probe_of(tiny_llama())


def lesson_on(data: Sequences, fitted: int) -> Lesson:
    rows = list(torch.arange(fitted).split(32))
    held_out = torch.arange(fitted, len(data.lengths))
    return Lesson([data.inputs(batch) for batch in rows], False, rows, held_out, data)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_smaller_model_comes_nearer_to_the_dense_one(family: str) -> None:
    """On other sequences, too; gpt2 has its weights the other way round."""
    subject = probe_of(example(family))
    data = Sequences(torch.randint(5, 300, (128, 20)))
    mask, lesson = random_mask(subject.space, keep=0.5), lesson_on(data, 96)
    before = copy.deepcopy(subject.model.requires_grad_(True).state_dict())
    least, joint = (config.fit(subject, mask, lesson) for config in (Reconstruct(sequences=96), CONFIG))
    torch.testing.assert_close(subject.model.state_dict(), before, rtol=0, atol=0)
    assert all(own.requires_grad and own.grad is None for own in subject.model.parameters())
    assert torch.equal(least.mask, joint.mask)
    divergence = Divergence(data, subject.model)
    for rows in (torch.arange(96), torch.arange(96, 128)):
        was, now = (
            float(divergence.loss(shrink(subject, own.mask, own.compensation), rows).mean()) for own in (least, joint)
        )
        assert now < 0.99 * was
    again = CONFIG.fit(subject, mask, lesson).compensation
    assert all(torch.equal(again.weights[key], weight) for key, weight in joint.compensation.weights.items())


@pytest.mark.parametrize(("batch_size", "passes"), [(32, 4), (1, 2)])
def test_few_sequences_are_passed_through_more_often(
    llama: Probe, caplog: pytest.LogCaptureFixture, batch_size: int, passes: int
) -> None:
    """96 sequences are 3 steps of 32, and 96 of one."""
    data = Sequences(torch.randint(5, 300, (100, 6)))
    with caplog.at_level("INFO", logger="policyprune.tuning.joint"):
        Joint(sequences=96, batch_size=batch_size).fit(llama, random_mask(llama.space, keep=0.5), lesson_on(data, 96))
    assert sum("after a pass" in record.message for record in caplog.records) == passes


def test_what_is_worse_on_sequences_held_out_is_not_kept(llama: Probe) -> None:
    data = Sequences(torch.randint(5, 300, (128, 20)))
    mask, lesson = random_mask(llama.space, keep=0.5), lesson_on(data, 96)
    wild = Joint(sequences=96, passes=1, learning_rate=300.0).fit(llama, mask, lesson).compensation
    calm = Reconstruct(sequences=96).fit(llama, mask, lesson).compensation
    assert all(torch.equal(wild.weights[key], weight) for key, weight in calm.weights.items())


def test_a_model_in_bfloat16_teaches_in_its_own_precision(llama: Probe) -> None:
    quick: Any = llama.on(copy.deepcopy(llama.model).to(torch.bfloat16))  # type: ignore[arg-type]
    data = Sequences(torch.randint(5, 300, (128, 20)))
    fitted = fit(PrunableModel(llama.model, llama.adapter, llama.space), random_mask(llama.space), data, CONFIG, quick)
    assert {weight.dtype for weight in fitted.compensation.weights.values()} == {torch.float32}
    assert all(row["strength"] > 0 for row in fitted.report)
