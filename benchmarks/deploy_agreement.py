"""Do transformers, ONNX Runtime and llama.cpp say the same: a greedy continuation, and perplexity."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from deploy_models import Deployed
from llama_cpp import ask
from torch import Tensor

from policyprune.surgery.onnx import Decoding, feed

PROMPT = "The first railway in England was opened in 1825; it's said that"
TOKENS = 64
GGUF = ("f32", "f16")


def onnx_step(graph: Decoding, runtime: Any, step: Tensor, done: int, past: Any) -> list[Tensor]:
    """Logits and the new cache for new tokens (B, T) after `done` others."""
    total = torch.ones(step.shape[0], done + step.shape[1], dtype=torch.long)
    positions = torch.arange(done, done + step.shape[1]).repeat(step.shape[0], 1)
    return feed(runtime, (*(step, total, positions)[: len(graph.plain)], *past))


@torch.inference_mode()
def agreement(pruned: Deployed, windows: Tensor) -> dict[str, dict[str, float]]:
    """By runtime: how many of the first `TOKENS` tokens are those of torch, how near a tie the first other one is, and
    the perplexity of windows (N, L)."""
    ids = pruned.tokenizer(PROMPT)["input_ids"]
    wanted = by_torch(pruned, ids)
    graph, runtime = pruned.onnx()
    found = {
        "transformers f32": (wanted, wanted, torch_nats(pruned, windows)),
        "ONNX Runtime f32": (by_onnx(graph, runtime, ids), wanted, onnx_nats(graph, runtime, windows)),
    }
    for dtype in GGUF:
        file = pruned.file("gguf", dtype)
        said = ask(file, **{"text": PROMPT, "ids": ids, "continue": TOKENS}, threads=torch.get_num_threads())
        if said["tokens"] != ids:
            raise RuntimeError(f"llama.cpp reads other tokens: {said['tokens']} for {ids}")
        found[f"llama.cpp {dtype}"] = said["continued"], wanted, llama_cpp_nats(file, windows)
    rows = {}
    for name, (tokens, own, nats) in found.items():
        agree = same(tokens, own)
        parted = agree < min(len(own), len(tokens))
        gap = nats_between(pruned, ids + own[:agree], own[agree], tokens[agree]) if parted else 0.0
        rows[name] = {"agree": agree, "of": len(own), "gap": gap, "perplexity": math.exp(nats)}
    return rows


def same(found: list[int], wanted: list[int]) -> int:
    """Tokens before the first that differs."""
    pairs = zip(found, wanted, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(found), len(wanted)))


def nats_between(pruned: Deployed, ids: list[int], best: int, other: int) -> float:
    """How much likelier torch finds the token `best` than `other` after `ids`: small at a near-tie."""
    logits = pruned.model(torch.tensor([ids])).logits[0, -1].double()
    return float(logits[best] - logits[other])


def by_torch(pruned: Deployed, ids: list[int]) -> list[int]:
    """The greedy continuation by `generate`, past the end of the text too."""
    given = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "eos_token_id": None}
    tokens: list[int] = pruned.model.generate(torch.tensor([ids]), **given)[0, len(ids) :].tolist()
    return tokens


def by_onnx(graph: Decoding, runtime: Any, ids: list[int]) -> list[int]:
    """The same, token by token with the cache."""
    step, past, done, tokens = torch.tensor([ids]), list(graph.no_past(1)), 0, []
    for _ in range(TOKENS):
        logits, *past = onnx_step(graph, runtime, step, done, past)
        done += step.shape[1]
        step = logits[:, -1:].argmax(-1)
        tokens.append(int(step))
    return tokens


def torch_nats(pruned: Deployed, windows: Tensor) -> float:
    """Mean cross-entropy of the next tokens of windows (N, L)."""
    return _mean(_chances(pruned.model(window[None]).logits, window) for window in windows)


def onnx_nats(graph: Decoding, runtime: Any, windows: Tensor) -> float:
    """The same."""
    empty = graph.no_past(1)
    return _mean(_chances(onnx_step(graph, runtime, window[None], 0, empty)[0], window) for window in windows)


def llama_cpp_nats(file: Path, windows: Tensor) -> float:
    """The same."""
    return _mean(ask(file, ids=window, score=True)["probabilities"] for window in windows.tolist())


def _chances(logits: Tensor, ids: Tensor) -> list[float]:
    """Probability of each next token of one window."""
    found: list[float] = logits[0, :-1].double().softmax(-1).gather(-1, ids[1:, None]).squeeze(-1).tolist()
    return found


def _mean(chances: Iterable[list[float]]) -> float:
    return -float(torch.tensor(list(chances), dtype=torch.float64).log().mean())
