"""The exports in their own runtimes: transformers, ONNX Runtime and llama.cpp say the same. `make test-slow`."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from policyprune.models.adapter import adapt
from policyprune.pruning.space import space_of
from policyprune.surgery.gguf import write_gguf
from policyprune.surgery.onnx import feed, session
from policyprune.surgery.onnx_graph import Decoding, graph_of
from policyprune.surgery.shrink import shrink

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
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
    return shrink(model, adapter, space, mask)


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
    expected = greedy(model, ids)
    end = tiny_tokenizer.eos_token_id  # where llama.cpp stops
    wanted = expected[: expected.index(end)] if end in expected else expected
    assert len(wanted) >= 32
    assert found["continued"] == wanted


@pytest.fixture(scope="module", params=[0.8, 0.5])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    arguments = [f"budget.keep={request.param}", "optimizer=one_shot", "evaluation=none", "export=[hf,onnx,gguf]"]
    command = [sys.executable, "-m", "policyprune", *arguments, "export.gguf_dtype=f32", f"hydra.run.dir={path}"]
    subprocess.run(command, check=True)
    return path


def perplexity(losses: Tensor) -> float:
    return math.exp(float(losses.double().mean()))


@pytest.mark.slow
def test_three_runtimes_agree_on_the_real_model(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "checkpoint", trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "checkpoint")
    runtime = session(folder / "onnx" / "model.onnx")
    graph = graph_of(model, adapt(model), False)
    assert isinstance(graph, Decoding)
    file = folder / "model-f32.gguf"

    ids, text = tokenizer(PROMPT)["input_ids"], tokenizer(TEXT)["input_ids"]
    with torch.inference_mode():
        expected = greedy(model, ids)
    step, past, by_onnx = torch.tensor([ids]), graph.no_past(1), []
    done = 0
    for _ in range(TOKENS):
        total = torch.ones(1, done + step.shape[1], dtype=torch.long)
        positions = torch.arange(done, done + step.shape[1])[None]
        logits, *past = feed(runtime, (step, total, positions, *past))  # type: ignore[assignment]
        done += step.shape[1]
        step = logits[:, -1:].argmax(-1)
        by_onnx.append(int(step))
    found = llama_cpp.ask(file, **{"text": PROMPT, "ids": ids, "continue": TOKENS})
    assert by_onnx == expected
    assert found["tokens"] == ids
    assert found["continued"] == expected

    whole, targets = torch.tensor([text]), torch.tensor(text[1:])[:, None]
    with torch.inference_mode():
        by_torch = -model(whole).logits[0, :-1].log_softmax(-1).gather(-1, targets)
    scored = feed(runtime, (whole, torch.ones_like(whole), torch.arange(len(text))[None], *graph.no_past(1)))[0]
    wanted = perplexity(by_torch)
    assert perplexity(-scored[0, :-1].log_softmax(-1).gather(-1, targets)) == pytest.approx(wanted, rel=0.01)
    chances = llama_cpp.ask(file, ids=text, score=True)["probabilities"]
    assert perplexity(-torch.tensor(chances, dtype=torch.float64).log()) == pytest.approx(wanted, rel=0.01)
    print(json.dumps({"perplexity": wanted, "continued": tokenizer.decode(expected)}))
