"""Speed of pruned checkpoints against the dense one in torch, ONNX Runtime and llama.cpp, beside what the MACs promise.

    python benchmarks/deploy_speed.py DENSE PRUNED [PRUNED ...]

Each is a checkpoint folder, a run's folder or anything that model.source takes. Prefill is 8 sequences of 128 tokens
(in llama.cpp one after another), decoding 128 tokens one by one after 8. Prints a table in Markdown.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from llama_cpp import ask, install
from tabulate import tabulate
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from policyprune.config.subjects import subject
from policyprune.evaluation.efficiency import block_macs
from policyprune.models.adapter import adapt
from policyprune.models.gguf import converted
from policyprune.models.loading import quiet
from policyprune.models.sources import locate
from policyprune.surgery.gguf import write_gguf
from policyprune.surgery.onnx import feed, session, write_onnx
from policyprune.surgery.onnx_graph import Decoding, graph_of

BATCH, LENGTH, DECODED, PROMPT = 8, 128, 128, 8
Timed = dict[str, Callable[[], object]]


def load(source: str) -> tuple[Any, Any]:
    """Model in float32 and tokenizer."""
    where: Path | str = locate("source", subject(source).source) or source
    if isinstance(where, Path) and where.suffix == ".gguf":
        where = converted(where)
    model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, trust_remote_code=True).eval()
    return model, AutoTokenizer.from_pretrained(where)


def medians(actions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each action; they take turns, after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for repeat in range(repeats + 1):
        for name, action in actions.items():
            began = time.perf_counter()
            action()
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def ids(model: Any, batch: int, length: int) -> torch.Tensor:
    return torch.arange(batch * length).view(batch, length) % model.config.vocab_size


def torch_decoding(model: Any) -> None:
    """Step by step with the cache, without what `generate` adds."""
    cache, step = DynamicCache(), ids(model, 1, PROMPT)
    for _ in range(DECODED):
        step = model(step, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)


def onnx_step(graph: Decoding, runtime: Any, step: torch.Tensor, done: int, past: Any) -> list[torch.Tensor]:
    total = torch.ones(step.shape[0], done + step.shape[1], dtype=torch.long)
    positions = torch.arange(done, done + step.shape[1]).repeat(step.shape[0], 1)
    return feed(runtime, (*(step, total, positions)[: len(graph.plain)], *past))


def onnx_decoding(graph: Decoding, runtime: Any) -> None:
    step, done, past = ids(graph.model, 1, PROMPT), 0, list(graph.no_past(1))
    for _ in range(DECODED):
        logits, *past = onnx_step(graph, runtime, step, done, past)
        done += step.shape[1]
        step = logits[:, -1:].argmax(-1)


def rows(label: str, seconds: dict[str, float], macs: dict[str, float] | None) -> list[list[str]]:
    """A line of the table for each pruned model."""
    dense = next(iter(seconds))
    return [
        [
            label,
            name,
            f"{1e3 * seconds[dense]:,.0f}",
            f"{1e3 * own:,.0f}",
            f"{seconds[dense] / own:.2f}",
            f"{macs[name]:.2f}" if macs else "",
        ]
        for name, own in seconds.items()
        if name != dense
    ]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense")
    parser.add_argument("pruned", nargs="+")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gguf-dtype", default="f32", choices=("f32", "f16", "q8_0"))
    arguments = parser.parse_args()
    quiet()
    loaded = {source: load(source) for source in (arguments.dense, *arguments.pruned)}
    models = {name: model for name, (model, _) in loaded.items()}
    dense = models[arguments.dense]
    blocks = {name: block_macs(adapt(model), LENGTH) for name, model in models.items()}
    head = LENGTH * dense.config.vocab_size * dense.config.hidden_size
    promised = {name: blocks[arguments.dense] / own for name, own in blocks.items()}
    whole = {name: (blocks[arguments.dense] + head) / (own + head) for name, own in blocks.items()}
    table = []

    batch = ids(dense, BATCH, LENGTH)
    timed: Timed = {name: lambda m=model: m.base_model(batch, use_cache=False) for name, model in models.items()}
    table += rows("torch, prefill, blocks", medians(timed, arguments.repeats), promised)
    timed = {name: lambda m=model: m(batch, use_cache=False) for name, model in models.items()}
    table += rows("torch, prefill", medians(timed, arguments.repeats), whole)
    timed = {name: lambda m=model: torch_decoding(m) for name, model in models.items()}
    table += rows("torch, decoding", medians(timed, arguments.repeats), None)

    with tempfile.TemporaryDirectory() as scratch:
        graphs: dict[str, tuple[Decoding, Any]] = {}
        files = {}
        for number, (name, (model, tokenizer)) in enumerate(loaded.items()):
            graph = graph_of(model, adapt(model), False)
            assert isinstance(graph, Decoding)
            with torch.inference_mode(False):
                write_onnx(model, tokenizer, Path(scratch) / f"onnx{number}")
            graphs[name] = (graph, session(Path(scratch) / f"onnx{number}" / "model.onnx"))
            files[name] = Path(scratch) / f"{number}.gguf"
            write_gguf(model, tokenizer, files[name], arguments.gguf_dtype)
        empty = {name: graph.no_past(BATCH) for name, (graph, _) in graphs.items()}
        timed = {name: lambda n=name, own=own: onnx_step(*own, batch, 0, empty[n]) for name, own in graphs.items()}
        table += rows("ONNX Runtime, prefill", medians(timed, arguments.repeats), whole)
        timed = {name: lambda own=own: onnx_decoding(*own) for name, own in graphs.items()}
        table += rows("ONNX Runtime, decoding", medians(timed, arguments.repeats), None)
        graphs.clear()

        install()
        prefill: dict[str, list[float]] = {name: [] for name in files}
        decoding: dict[str, list[float]] = {name: [] for name in files}
        for _ in range(arguments.repeats):
            for name, file in files.items():
                threads = torch.get_num_threads()
                prefill[name].append(ask(file, ids=batch[0].tolist(), prefill=BATCH, threads=threads)["prefill"])
                step = {"ids": batch[0, :PROMPT].tolist(), "continue": DECODED + 1}
                decoding[name].append(ask(file, **step, threads=threads)["rest"])
        own = f"llama.cpp {arguments.gguf_dtype}"
        table += rows(f"{own}, prefill", {name: statistics.median(v) for name, v in prefill.items()}, whole)
        table += rows(f"{own}, decoding", {name: statistics.median(v) for name, v in decoding.items()}, None)

    print(f"\n{torch.get_num_threads()} threads, float32 in torch and ONNX Runtime, median of {arguments.repeats}\n")
    headers = ["", "pruned", "dense, ms", "pruned, ms", "speed-up", "promised by MACs"]
    print(tabulate(table, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
