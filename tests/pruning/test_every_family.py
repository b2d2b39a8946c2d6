"""Masks, losses, metrics and tuning on every family: fused projections, transposed weights, flattened tokens."""

import functools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from harness import validated
from policyprune.config.registry import option
from policyprune.models.examples import EXAMPLES, example
from policyprune.models.families import FAMILIES
from policyprune.models.layerwise import walk
from policyprune.models.sequences import token_losses
from policyprune.pruning.importance.evidence import Evidence
from policyprune.surgery.equivalence import Probe, outputs, probe_of, random_mask
from policyprune.tuning.teacher_student import Lesson

DECODERS = [name for name in EXAMPLES if FAMILIES[name.partition(",")[0]].head == "CausalLM"]


@functools.cache
def subject(name: str) -> Probe:
    return probe_of(example(name))


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_mask_per_sequence_is_each_sequence_with_its_own(name: str) -> None:
    own = subject(name)
    masks = torch.stack([random_mask(own.space, seed) for seed in (1, 2)]).float()
    with own.masking() as masking:
        masking.set(masks)
        together = outputs(own.model, own.ids)
        for row in (0, 1):
            masking.set(masks[row : row + 1])
            alone = outputs(own.model, own.ids[row : row + 1])
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", DECODERS)
def test_the_loss_is_the_cross_entropy_of_the_model_s_own_logits(name: str) -> None:
    own = subject(name)
    logits = own.model(own.ids).logits[:, :-1]
    expected = cross_entropy(logits.transpose(1, 2), own.ids[:, 1:], reduction="none")
    torch.testing.assert_close(token_losses(own.model, own.ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_walk_gives_each_layer_what_a_plain_forward_does(name: str) -> None:
    own = subject(name)
    batch = {"input_ids": own.ids, "attention_mask": torch.ones_like(own.ids)}
    batch["attention_mask"][0, -3:] = 0
    plain: list[tuple[Any, Any]] = []

    def record(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        plain.append((hidden, out[0] if isinstance(out, tuple) else out))

    layers = [own.model.get_submodule(path) for path in own.adapter.layers]
    handles = [layer.register_forward_hook(record, with_kwargs=True) for layer in layers]
    with torch.no_grad():
        own.model.base_model(**batch, use_cache=False)
    for handle in handles:
        handle.remove()
    for layer, (hidden, out) in zip(walk(own.model, own.adapter, [batch]), plain, strict=True):
        torch.testing.assert_close(layer.hidden, [hidden])
        torch.testing.assert_close(layer.outputs(), [out])
    assert not any("forward" in vars(layer) for layer in layers)


@pytest.mark.parametrize("name", DECODERS)
def test_scores_and_tuning_run(name: str) -> None:
    own = subject(name)
    evidence = Evidence(
        prunable=own,
        rows=[torch.arange(2)],
        inputs=lambda rows: {"input_ids": own.ids[rows]},
        loss=lambda rows: token_losses(own.model, own.ids[rows]).mean(1),
        keep=0.7,
        seed=0,
    )
    for metric in ("wanda_sp", "magnitude", "fisher"):
        scores = option("importance", metric)().score(evidence)
        assert scores.shape == (own.space.n,)
        assert bool((scores >= 0).all())
        assert bool(scores.isfinite().all())
        assert bool((scores > 0).float().mean() > 0.5)  # OPT's ReLU leaves some channels silent
    mask = random_mask(own.space, keep=0.8)
    config = validated("task=glue/sst2", "budget=flops", "optimizer=kwon", "tuning=cg2", "tuning.damp=0.01").tuning
    fitted = config.fit(own, mask, Lesson(evidence.batches()))
    mask, compensation, report = fitted.mask, fitted.compensation, fitted.report
    assert compensation.scales is not None
    assert bool((compensation.scales[~mask] == 0).all())
    assert "tuned" in {entry["outcome"] for entry in report}
    assert all(entry["error"] <= entry["binary_error"] for entry in report)
