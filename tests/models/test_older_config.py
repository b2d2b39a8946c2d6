"""config.json has the rotary embeddings in the words of transformers 4, too, and 5 reads the same from them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from policyprune.models.adapter import adapt
from policyprune.models.examples import EXAMPLES, SIZES, random_model
from policyprune.models.families import FAMILIES
from policyprune.surgery.checkpoint import auto_class, save_checkpoint
from policyprune.surgery.equivalence import outputs, probe_of

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
LONG = {"short_factor": [1.5, 1.2, 1.1, 1.0], "long_factor": [3.0, 2.0, 2.0, 2.0]}


def plain(theta: float, **rest: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **rest}}


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "base": ("llama", plain(1e6), {"rope_theta": 1e6}),
    "mistral": ("mistral", plain(1e6), {"rope_theta": 1e6}),
    "qwen2": ("qwen2", plain(1e6), {"rope_theta": 1e6}),
    "gemma2": ("gemma2", plain(5e5), {"rope_theta": 5e5}),
    "llama3": (
        "llama",
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    ),
    "gemma3": (
        "gemma3_text",
        {
            **WINDOWS,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            },
        },
        {"rope_theta": 1e6, "rope_local_base_freq": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    "phi3": (
        "phi3",
        plain(5e5, partial_rotary_factor=0.5) | {"num_attention_heads": 4, "num_key_value_heads": 4},
        {"rope_theta": 5e5, "partial_rotary_factor": 0.5},
    ),
    "phi3, long": (
        "phi3",
        {
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 1.0, **LONG},
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
        },
        {"rope_theta": 1e4, "partial_rotary_factor": 1.0, "rope_scaling": {"type": "longrope", **LONG}},
    ),
    "gpt_neox": ("gpt_neox", plain(5e4, partial_rotary_factor=0.5), {"rotary_emb_base": 5e4, "rotary_pct": 0.5}),
    "bert": ("bert", {}, {}),
}
OLD = {"rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor", "rotary_emb_base", "rotary_pct"}


def stated(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())
    assert isinstance(config, dict)
    return config


def loaded(folder: Path, like: PreTrainedModel) -> Any:
    return getattr(transformers, auto_class(like)).from_pretrained(folder).eval()


@pytest.mark.parametrize("name", CASES)
def test_old_and_new_names_say_the_same(name: str, tmp_path: Path) -> None:
    kind, changes, wanted = CASES[name]
    config = AutoConfig.for_model(kind, **{**SIZES, **EXAMPLES[kind], **changes})
    subject = probe_of(random_model(config, FAMILIES[kind].head))
    expected = outputs(subject.model, subject.ids)
    save_checkpoint(subject.model, None, subject.adapter, tmp_path / "one")
    first = stated(tmp_path / "one")
    assert {key: value for key, value in first.items() if key in OLD and value is not None} == wanted
    assert first["torch_dtype"] == first["dtype"] == "float32"
    again = loaded(tmp_path / "one", subject.model)
    assert torch.equal(outputs(again, subject.ids), expected)
    save_checkpoint(again, None, adapt(again), tmp_path / "two")
    second = stated(tmp_path / "two")
    assert {key: value for key, value in second.items() if key in OLD and value is not None} == wanted
    assert torch.equal(outputs(loaded(tmp_path / "two", subject.model), subject.ids), expected)
    without = {key: value for key, value in first.items() if key not in wanted}  # as transformers 5 writes it
    (tmp_path / "one" / "config.json").write_text(json.dumps(without))
    assert torch.equal(outputs(loaded(tmp_path / "one", subject.model), subject.ids), expected)
    only_old = {key: value for key, value in first.items() if key != "rope_parameters"}  # all that transformers 4 reads
    (tmp_path / "one" / "config.json").write_text(json.dumps(only_old))
    assert torch.equal(outputs(loaded(tmp_path / "one", subject.model), subject.ids), expected)
