"""On a GPU in bfloat16: the smaller model is the masked one, loads again, and learns."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import policyprune as pp
from harness import paragraphs
from policyprune.surgery.equivalence import TOLERANCE_BFLOAT16, gap, outputs, probe_of

pytestmark = pytest.mark.gpu
TEXTS, OTHER = paragraphs(80), paragraphs(40, seed=1)
SHORT = {"steps": 24, "length": 16, "learning_rate": 3e-3, "evaluations": 2, "dtype": "bfloat16"}


@pytest.fixture(scope="module")
def pruned(learned: Any, tiny_tokenizer: Any) -> pp.PruningResult:
    """By the default method."""
    return pp.prune(learned, TEXTS, tiny_tokenizer, keep=0.5, length=16, bos=False)


def reloaded(folder: Path, device: torch.device) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).to(device).eval()


def test_masked_shrunk_and_reloaded_are_one_model(pruned: pp.PruningResult, gpu: torch.device, tmp_path: Path) -> None:
    assert (pruned.model.dtype, pruned.model.device.type) == (torch.bfloat16, gpu.type)
    probe = probe_of(pruned.prunable.model)
    probe = replace(probe, ids=probe.ids.to(gpu))
    smaller = pruned.prunable.shrunk(pruned.mask)
    assert gap(outputs(smaller, probe.ids), probe.masked_outputs(pruned.mask)) <= TOLERANCE_BFLOAT16
    pruned.save(tmp_path / "out")
    expected = outputs(pruned.model, probe.ids)
    assert gap(outputs(reloaded(tmp_path / "out", gpu), probe.ids), expected) <= TOLERANCE_BFLOAT16


def test_new_weights_are_better_than_none(pruned: pp.PruningResult, tiny_tokenizer: Any) -> None:
    """On texts that they were not fitted to."""
    models = pruned.model, pruned.prunable.shrunk(pruned.mask)
    own, without = (pp.evaluate(model, OTHER, tiny_tokenizer, length=16, bos=False).loss for model in models)
    assert own < without - 0.05


def test_distillation_lowers_the_held_out_loss(
    pruned: pp.PruningResult, tiny_tokenizer: Any, gpu: torch.device, tmp_path: Path
) -> None:
    dense, untuned = pruned.prunable.model, pruned.prunable.shrunk(pruned.mask)
    found = pp.recover(untuned, TEXTS, tiny_tokenizer, dense, recovery=pp.Distill(**SHORT))
    assert (found.report["outcome"], found.report["computed_in"]) == ("recovered", "bfloat16")
    held_out = found.report["held_out"]
    assert held_out["after"] < held_out["before"] - 0.1
    found.save(tmp_path / "out", tiny_tokenizer)
    ids = torch.arange(24, device=gpu)[None]
    assert gap(outputs(reloaded(tmp_path / "out", gpu), ids), outputs(found.model, ids)) <= TOLERANCE_BFLOAT16


def test_the_model_writes_its_own_calibration_text(
    learned: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the GPU, in batches; the same text again where the file is gone."""
    monkeypatch.setenv("POLICYPRUNE_CACHE", str(tmp_path))
    data = pp.Generated(length=24, tokens=2000, batch_size=16, calibration=pp.Calibration(count=32, length=16))
    result = pp.prune(learned, data, tiny_tokenizer, keep=0.5)
    assert result.report.sequences == 32
    (file,) = (tmp_path / "generated").iterdir()
    content = file.read_bytes()
    file.unlink()
    pp.prune(learned, data, tiny_tokenizer, keep=0.5, optimizer="one_shot")
    assert file.read_bytes() == content
