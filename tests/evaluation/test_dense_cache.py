"""The dense model is measured once per weights, test data and protocol."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from policyprune.evaluation.comparison import dense_measures
from policyprune.evaluation.measures import Measure
from policyprune.models.identity import identity_of


class Counting:
    """A quality that counts how often it measures."""

    def __init__(self, identity: dict[str, Any] | None) -> None:
        self._identity, self.times = identity, 0

    def identity(self) -> dict[str, Any] | None:
        return self._identity

    def of(self, title: str, model: Any) -> list[Measure]:
        self.times += 1
        return [Measure("perplexity", float(self.times), "", {"length": 8}), Measure("acc", 0.5, "", {}, 0.1)]


def test_the_same_is_not_measured_twice(tiny_llama: Any, tmp_path: Path) -> None:
    model, quality = tiny_llama(), Counting({"windows": "a"})
    first = dense_measures(quality, model, tmp_path, again=False)
    assert dense_measures(quality, model, tmp_path, again=False) == first
    assert quality.times == 1
    assert dense_measures(quality, model, tmp_path, again=True) != first


def test_other_weights_and_other_windows_are(tiny_llama: Any, tmp_path: Path) -> None:
    model, quality = tiny_llama(), Counting({"windows": "a"})
    dense_measures(quality, model, tmp_path, again=False)
    with torch.no_grad():
        next(iter(model.parameters()))[0, 0] += 1e-3
    dense_measures(quality, model, tmp_path, again=False)
    assert quality.times == 2
    other = Counting({"windows": "b"})
    dense_measures(other, model, tmp_path, again=False)
    assert other.times == 1


def permuted(model: Any) -> None:
    """Its sums and norms stay as they were, and its neurons change places on one side only."""
    up = model.model.layers[0].mlp.up_proj.weight
    up.copy_(up.flip(0).clone())


def other_class(model: Any) -> None:
    model.__class__ = type("Other", (type(model),), {})


def other_buffer(model: Any) -> None:
    model.model.rotary_emb.inv_freq.mul_(2)


def other_dtype(model: Any) -> None:
    model.bfloat16()


def other_config(model: Any) -> None:
    model.config.rms_norm_eps = 0.1


@pytest.mark.parametrize("change", [permuted, other_class, other_buffer, other_dtype, other_config])
def test_whatever_changes_the_number_is_measured_anew(change: Any, tiny_llama: Any, tmp_path: Path) -> None:
    model, quality = tiny_llama(), Counting({"windows": "a"})
    for parameter in model.parameters():
        parameter.mul_(8).round_()  # whose sums are exact in any order
    dense_measures(quality, model, tmp_path, again=False)
    with torch.no_grad():
        change(model)
    dense_measures(quality, model, tmp_path, again=False)
    assert quality.times == 2


@pytest.mark.parametrize("what", ["torch.get_num_threads", "policyprune.models.identity.source_hash"])
def test_and_so_is_what_other_code_or_threads_would_give(
    what: str, tiny_llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, quality = tiny_llama(), Counting({"windows": "a"})
    dense_measures(quality, model, tmp_path, again=False)
    monkeypatch.setattr(what, lambda: 64)
    dense_measures(quality, model, tmp_path, again=False)
    assert quality.times == 2


def test_the_code_of_a_class_of_its_own_is_part_of_the_key(tiny_llama: Any, tmp_path: Path) -> None:
    """The same weights, config and class name, and another file."""
    identities = []
    for factor in (1, 2):
        file = tmp_path / str(factor) / "modeling_other.py"
        file.parent.mkdir()
        file.write_text(
            f"from transformers import LlamaForCausalLM\nclass Other(LlamaForCausalLM):\n    factor = {factor}\n"
        )
        spec = importlib.util.spec_from_file_location("modeling_other", file)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["modeling_other"] = module
        assert spec.loader is not None
        spec.loader.exec_module(module)
        model = tiny_llama()
        model.__class__ = module.Other
        identities.append(identity_of(model))
        del sys.modules["modeling_other"]
    assert identities[0]["weights"] == identities[1]["weights"]
    assert identities[0] != identities[1]


@pytest.mark.parametrize("content", ["", "{", '[["perplexity"]]'])
def test_a_damaged_file_is_replaced(content: str, tiny_llama: Any, tmp_path: Path) -> None:
    model, quality = tiny_llama(), Counting({"windows": "a"})
    measures = dense_measures(quality, model, tmp_path, again=False)
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    dense_measures(quality, model, tmp_path, again=False)
    assert quality.times == 2
    assert dense_measures(quality, model, tmp_path, again=False) == [measures[0]._replace(value=2.0), measures[1]]


def test_what_needs_outputs_is_always_measured(tiny_llama: Any, tmp_path: Path) -> None:
    model, quality = tiny_llama(), Counting(None)
    for _ in range(2):
        dense_measures(quality, model, tmp_path, again=False)
    assert quality.times == 2
    assert not list(tmp_path.iterdir())
