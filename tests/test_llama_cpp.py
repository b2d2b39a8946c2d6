"""The exports in their own runtimes: transformers, ONNX Runtime and llama.cpp say the same. `make test-slow`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from policyprune.models.adapter import adapt
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import space_of
from policyprune.surgery.gguf import write_gguf
from policyprune.surgery.shrink import shrink

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import deploy_agreement
import deploy_models
import llama_cpp

TOKENS = 40
PROMPT = "The first railway in England was opened in 1825; it's said that"
TEXT = (
    "The lighthouse stands on a small island off the coast. It was built in 1862 to warn ships of the rocks, and a "
    "keeper lived there with his family until the lamp was made automatic. Today it is open to visitors in the summer."
)


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    try:
        llama_cpp.install()
    except RuntimeError as error:
        pytest.skip(str(error))


def pruned(model: Any, killed: list[tuple[int, str]]) -> Any:
    adapter = adapt(model)
    space = space_of(adapter, ["attention", "ffn"])
    mask = torch.rand(space.n) < 0.7
    for key in killed:
        space.views(mask)[key].zero_()
    return shrink(PrunableModel(model, adapter, space), mask)


def greedy(model: Any, ids: list[int]) -> list[int]:
    given = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "eos_token_id": None}
    found: list[int] = model.generate(torch.tensor([ids]), **given)[0, len(ids) :].tolist()
    return found


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CASES: dict[str, tuple[list[tuple[int, str]], dict[str, Any]]] = {
    "unequal": ([], {}),
    "a layer without attention, one without FFN": ([(1, "attention"), (2, "ffn")], {}),
    "nothing in the first layer": ([(0, "attention"), (0, "ffn")], {}),
    "tied embeddings": ([(1, "attention")], {"tie_word_embeddings": True}),
    "stretched rotary embeddings": (
        [],
        {"rope_parameters": {**LLAMA3, "rope_theta": 1e4, "original_max_position_embeddings": 32}},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_continues_a_tiny_model_as_torch_does(
    case: str, tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    killed, changes = CASES[case]
    model = pruned(tiny_llama(vocab_size=len(tiny_tokenizer), head_dim=32, **changes), killed)
    write_gguf(model, tiny_tokenizer, tmp_path / "m.gguf", "f32")
    ids = tiny_tokenizer(PROMPT)["input_ids"]
    found = llama_cpp.ask(tmp_path / "m.gguf", **{"text": PROMPT, "ids": ids, "continue": TOKENS})
    assert found["tokens"] == ids
    assert found["continued"] == greedy(model, ids)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [0.8, 0.5])
def test_three_runtimes_agree_on_the_real_model(keep: float, tmp_path: Path) -> None:
    arguments = [f"budget.keep={keep}", "optimizer=one_shot", "evaluation=none", f"hydra.run.dir={tmp_path}"]
    subprocess.run([sys.executable, "-m", "policyprune", *arguments], check=True)
    pruned = deploy_models.deployed(tmp_path / "checkpoint", tmp_path)
    windows = torch.tensor([pruned.tokenizer(TEXT)["input_ids"]])
    found = deploy_agreement.agreement(pruned, windows)
    print(json.dumps(found))
    for name, own in found.items():
        assert own["of"] >= 32
        assert own["agree"] >= 32 or name.endswith("f16")  # which multiplies rounded activations, too
        assert own["perplexity"] == pytest.approx(found["transformers f32"]["perplexity"], rel=0.01)
