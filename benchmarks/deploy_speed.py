"""Speed of a pruned model against the dense one in torch, ONNX Runtime and llama.cpp, beside what the MACs promise.

Prefill is 8 sequences of 128 tokens (in llama.cpp one after another), decoding 128 tokens one by one after 8.
"""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from deploy_agreement import onnx_step
from deploy_models import Deployed
from llama_cpp import ask
from torch import nn
from transformers import DynamicCache

from policyprune.evaluation.latency import block_seconds, in_turns
from policyprune.evaluation.measures import block_macs
from policyprune.surgery.onnx import Decoding

BATCH, LENGTH, DECODED, PROMPT = 8, 128, 128, 8
Row = dict[str, float | str | None]  # what: seconds of dense and pruned, the speed-up that the MACs promise


def row(what: str, seconds: Mapping[str, float], promised: float | None) -> Row:
    return {"what": what, "dense": seconds["dense"], "pruned": seconds["pruned"], "promised": promised}


def medians(actions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each action; they take turns, after a warm-up."""
    seconds = in_turns(actions, repeats, torch.device("cpu"), warm_ups=1)
    return {name: statistics.median(values) for name, values in seconds.items()}


def ids(model: Any, batch: int, length: int) -> torch.Tensor:
    return torch.arange(batch * length).view(batch, length) % model.config.vocab_size


@torch.inference_mode()
def in_torch(models: Mapping[str, Deployed], repeats: int) -> list[Row]:
    """The transformer blocks alone and the projections in them alone, which tell what eats a gap; the whole model."""
    nets = {name: own.model for name, own in models.items()}
    batch = ids(nets["dense"], BATCH, LENGTH)
    blocks = {name: statistics.median(own) for name, own in block_seconds(nets, BATCH, LENGTH, repeats).items()}
    found = [row("prefill, blocks", blocks, promise(models, head=False))]
    linear = {name: (lambda own=own: run_projections(own)) for name, own in models.items()}
    per_token = {name: sum(b.count * b.macs_per_token for b in own.adapter.blocks) for name, own in models.items()}
    shares = per_token["dense"] / per_token["pruned"]
    found.append(row("prefill, projections of the blocks", medians(linear, repeats), shares))
    whole = {name: (lambda net=net: net(batch, use_cache=False)) for name, net in nets.items()}
    found.append(row("prefill", medians(whole, repeats), promise(models)))
    decoding = {name: (lambda net=net: torch_decoding(net)) for name, net in nets.items()}
    return [*found, row("decoding", medians(decoding, repeats), None)]


@torch.inference_mode()
def in_onnx(models: Mapping[str, Deployed], repeats: int) -> list[Row]:
    """The whole model in float32."""
    graphs = {name: own.onnx() for name, own in models.items()}
    batch = ids(models["dense"].model, BATCH, LENGTH)
    empty = {name: graph.no_past(BATCH) for name, (graph, _) in graphs.items()}
    prefill = {name: (lambda n=name, own=own: onnx_step(*own, batch, 0, empty[n])) for name, own in graphs.items()}
    decoding = {name: (lambda own=own: onnx_decoding(*own)) for name, own in graphs.items()}
    found = [row("prefill", medians(prefill, repeats), promise(models))]
    return [*found, row("decoding", medians(decoding, repeats), None)]


@torch.inference_mode()
def in_llama_cpp(models: Mapping[str, Deployed], repeats: int, dtype: str = "f32") -> list[Row]:
    """The whole model; each repeat is a process of its own."""
    files = {name: own.file("gguf", dtype) for name, own in models.items()}
    batch, threads = ids(models["dense"].model, 1, LENGTH)[0].tolist(), torch.get_num_threads()
    prefill: dict[str, list[float]] = {name: [] for name in files}
    decoding: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(repeats):
        for name, file in files.items():
            prefill[name].append(ask(file, ids=batch, prefill=BATCH, threads=threads)["prefill"])
            step = {"ids": batch[:PROMPT], "continue": DECODED + 1}
            decoding[name].append(ask(file, **step, threads=threads)["rest"])
    middle = [{name: statistics.median(own) for name, own in times.items()} for times in (prefill, decoding)]
    return [row(f"{dtype}, prefill", middle[0], promise(models)), row(f"{dtype}, decoding", middle[1], None)]


def promise(models: Mapping[str, Deployed], head: bool = True) -> float:
    """Multiply-accumulates of the dense model over those of the pruned one, per sequence."""
    macs = {name: block_macs(own.adapter, LENGTH) for name, own in models.items()}
    if head:
        macs = {n: own + LENGTH * models[n].model.get_output_embeddings().weight.numel() for n, own in macs.items()}
    return macs["dense"] / macs["pruned"]


def run_projections(own: Deployed) -> None:
    """Every linear module of the blocks once, on as many rows as a prefill has tokens."""
    for path in own.adapter.layers:
        for module in own.model.get_submodule(path).modules():
            if isinstance(module, nn.Linear):
                module(torch.ones(BATCH, LENGTH, module.in_features))


def torch_decoding(model: Any) -> None:
    """Step by step with the cache, without what `generate` adds."""
    cache, step = DynamicCache(), ids(model, 1, PROMPT)
    for _ in range(DECODED):
        step = model(step, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)


def onnx_decoding(graph: Decoding, runtime: Any) -> None:
    step, done, past = ids(graph.model, 1, PROMPT), 0, list(graph.no_past(1))
    for _ in range(DECODED):
        logits, *past = onnx_step(graph, runtime, step, done, past)
        done += step.shape[1]
        step = logits[:, -1:].argmax(-1)
