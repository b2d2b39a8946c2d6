"""The embedded SmolLM2-135M through the real command, some minutes: `make test-slow`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ARGUMENTS = [
    "method=straight_through",
    "optimizer.steps=10",
    "importance.sequences=32",
    "evaluation.max_tokens=2048",
    "evaluation.latency.repeats=1",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    command = [sys.executable, "-m", "policyprune", *ARGUMENTS, f"hydra.run.dir={path}"]
    subprocess.run(command, check=True)
    return path


def perplexities(folder: Path) -> dict[str, float]:
    rows = json.loads((folder / "record.json").read_text(encoding="utf-8"))["results"]
    return {
        f"{row['subject']} {row['protocol'].get('scope', '')}".strip(): row["value"]
        for row in rows
        if row["metric"] == "perplexity"
    }


@pytest.mark.slow
def test_ten_steps_beat_the_metric_alone_by_far(folder: Path) -> None:
    found = perplexities(folder)
    assert found["dense"] < found["pruned"]
    assert found["pruned"] < 0.4 * min(found["one_shot global"], found["one_shot per_layer"])


@pytest.mark.slow
def test_the_reloaded_checkpoint_has_the_same_perplexity(folder: Path) -> None:
    found = perplexities(folder)
    assert found["reloaded"] == pytest.approx(found["pruned"], rel=1e-4)


@pytest.mark.slow
def test_the_checkpoint_generates_the_same_with_and_without_cache(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "checkpoint", trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder / "checkpoint")
    inputs = tokenizer("The first railway in England", return_tensors="pt")
    with torch.inference_mode():
        cached = model.generate(**inputs, max_new_tokens=24, do_sample=False)
        plain = model.generate(**inputs, max_new_tokens=24, do_sample=False, use_cache=False)
    assert torch.equal(cached, plain)
