"""ONNX: a folder with model.onnx, checked with ONNX Runtime against torch before it gets its name."""

import copy
import importlib.util
import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from policyprune.errors import UsageError
from policyprune.models.adapter import Adapter, adapt
from policyprune.models.families import family_of
from policyprune.storage.files import write_folder
from policyprune.surgery.checkpoint import auto_class

Shapes = dict[str, dict[int, str]]
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
HEADS = ("AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModelForQuestionAnswering")
TOLERANCE = 1e-3  # of the largest output
CONTINUED = 32  # tokens of the greedy continuation that is compared


@dataclass(frozen=True, kw_only=True)
class Cached:
    """The key/value heads of one layer, (B, heads, past, size) each; `empty`: its attention was removed."""

    layer: int
    key: tuple[int, int]
    value: tuple[int, int]
    empty: bool


class Encoding(nn.Module):
    """input_ids, attention_mask (and token_type_ids) to the head's outputs."""

    def __init__(self, model: PreTrainedModel, outputs: tuple[str, ...], token_types: bool) -> None:
        super().__init__()
        self.model, self.outputs = model, outputs
        self.inputs = ("input_ids", "attention_mask", *(["token_type_ids"] if token_types else []))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors in the order of `inputs`, each (B, T)."""
        out = self.model(**dict(zip(self.inputs, tensors, strict=True)))
        return tuple(out[name] for name in self.outputs)

    def example(self, batch: int, length: int) -> tuple[Tensor, ...]:
        """Random arguments."""
        ids = torch.randint(self.model.config.vocab_size, (batch, length))
        masks = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        return (ids, *(masks[name] for name in self.inputs[1:]))

    def shapes(self) -> Shapes:
        """Names of the axes that vary, by input."""
        return {name: {0: "batch", 1: "sequence"} for name in self.inputs}


class Decoding(nn.Module):
    """One step of a decoder: new tokens and the cache of the past ones to logits and the cache of all of them.

    The past may be empty, so one graph serves prefill and decoding. Layers without attention have no cache.
    """

    def __init__(self, model: PreTrainedModel, layers: list[Cached]) -> None:
        super().__init__()
        self.model, self.layers = model, layers
        positions = "position_ids" in inspect.signature(model.forward).parameters
        self.plain = ("input_ids", "attention_mask", *(["position_ids"] if positions else []))
        names = [f"{cached.layer}.{part}" for cached in layers if not cached.empty for part in ("key", "value")]
        self.inputs = (*self.plain, *(f"past_key_values.{name}" for name in names))
        self.outputs = ("logits", *(f"present.{name}" for name in names))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """input_ids (B, T), attention_mask (B, past + T), position_ids (B, T), then keys and values of each layer."""
        count = len(self.plain)
        inputs = dict(zip(self.plain, tensors[:count], strict=True))
        past = iter(tensors[count:])
        length = tensors[count].shape[2]
        cache = DynamicCache()
        for cached in self.layers:
            if cached.empty:  # its stand-in still counts the tokens that have passed
                passed = self._zeros(tensors[0].shape[0], cached.key, length)
                cache.update(passed, passed, cached.layer)
            else:
                cache.update(next(past), next(past), cached.layer)
        out = self.model(**inputs, past_key_values=cache, use_cache=True)
        kept = [out.past_key_values.layers[cached.layer] for cached in self.layers if not cached.empty]
        return (out.logits, *(tensor for layer in kept for tensor in (layer.keys, layer.values)))

    def example(self, batch: int, length: int, past: int = 3) -> tuple[Tensor, ...]:
        """Random arguments, the cache included."""
        ids = torch.randint(self.model.config.vocab_size, (batch, length))
        positions = torch.arange(past, past + length).repeat(batch, 1)
        plain = {"attention_mask": torch.ones(batch, past + length, dtype=torch.long), "position_ids": positions}
        shapes = [shape for cached in self.layers if not cached.empty for shape in (cached.key, cached.value)]
        cache = [torch.randn(batch, heads, past, size) for heads, size in shapes]
        return (ids, *(plain[name] for name in self.plain[1:]), *cache)

    def shapes(self) -> Shapes:
        """Names of the axes that vary, by input."""
        lengths = {"input_ids": "sequence", "attention_mask": "total", "position_ids": "sequence"}
        plain = {name: {0: "batch", 1: lengths[name]} for name in self.plain}
        return {**plain, **{name: {0: "batch", 2: "past"} for name in self.inputs[len(self.plain) :]}}

    def no_past(self, batch: int) -> tuple[Tensor, ...]:
        """The cache before the first token."""
        shapes = [shape for cached in self.layers if not cached.empty for shape in (cached.key, cached.value)]
        return tuple(self._zeros(batch, shape, 0) for shape in shapes)

    def _zeros(self, batch: int, shape: tuple[int, int], length: int) -> Tensor:
        heads, size = shape
        return torch.zeros(batch, heads, length, size, dtype=self.model.dtype)


def graph_of(model: PreTrainedModel, adapter: Adapter, token_types: bool) -> Encoding | Decoding:
    """The graph of a float32 model on the CPU; a decoder gets its cache unless no layer has any attention left."""
    with torch.no_grad():
        out: Any = model(torch.zeros(1, 2, dtype=torch.long))
    if "start_logits" in out:
        return Encoding(model, ("start_logits", "end_logits"), token_types)
    cache = getattr(out, "past_key_values", None)
    empty = {block.layer for block in adapter.blocks if block.kind == "attention" and not block.count}
    if cache is None or len(empty) == len(adapter.layers) or not model.can_generate():
        return Encoding(model, ("logits",), token_types)
    layers = [
        Cached(layer=index, key=_heads(layer.keys), value=_heads(layer.values), empty=index in empty)
        for index, layer in enumerate(cache.layers)
    ]
    return Decoding(model, layers)


def _heads(cached: Tensor) -> tuple[int, int]:
    """Heads and their size from keys or values (B, heads, T, size)."""
    return cached.shape[1], cached.shape[3]


def check_onnx(model: PreTrainedModel) -> None:
    """UsageError where a package is missing or the model has a head that is not exported."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"format: onnx needs {', '.join(missing)}: pip install 'policyprune[onnx]'")
    if auto_class(model) not in HEADS:
        raise UsageError(f"format: onnx takes {', '.join(HEADS)}, this is {type(model).__name__}")
    reason = family_of(model.config).onnx_obstacle(model.config)
    if reason:
        raise UsageError(f"format: onnx cannot hold this model: {reason}")


@torch.no_grad()
def write_onnx(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write float32 model.onnx (weights beside it where they pass 2 GB), config and tokenizer, with varying axes.

    Decoders take and give the key/value cache. RuntimeError, and nothing written, where ONNX Runtime disagrees.
    """
    check_onnx(model)
    if model.dtype != torch.float32 or model.device.type != "cpu":
        model = copy.deepcopy(model).float().cpu()  # type: ignore[arg-type]
    takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
    types = takes_types and "token_type_ids" in tokenizer.model_input_names
    graph = graph_of(model, adapt(model), types).eval()
    with write_folder(folder) as scratch:
        _export(graph, scratch / "model.onnx")
        verify(graph, scratch / "model.onnx")
        model.config.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        if model.can_generate() and model.generation_config is not None:
            model.generation_config.save_pretrained(scratch)


def _export(graph: Encoding | Decoding, file: Path) -> None:
    large = sum(parameter.numel() * 4 for parameter in graph.parameters()) > 1 << 30
    with _quiet(), _own_random_numbers():
        torch.onnx.export(
            graph,
            graph.example(2, 5),
            str(file),
            dynamo=True,
            dynamic_shapes=(tuple(graph.shapes().values()),),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            external_data=large,
            verbose=False,
        )


def session(file: Path, threads: int = 0) -> Any:
    """An ONNX Runtime session on the CPU; 0 threads: as many as torch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def verify(graph: Encoding | Decoding, file: Path) -> None:
    """RuntimeError where ONNX Runtime and torch differ by more than `TOLERANCE`, or in a greedy continuation."""
    runtime = session(file)
    with _own_random_numbers():
        for batch, length in ((1, 9), (3, 4)):
            arguments = graph.example(batch, length)
            _compare(graph(*arguments), feed(runtime, arguments))
        if isinstance(graph, Decoding):
            _compare_continuations(graph, runtime)


def _compare_continuations(graph: Decoding, runtime: Any) -> None:
    """Prefill without a past, then `CONTINUED` tokens one by one; the text is torch's, ONNX Runtime must agree."""
    ids, positions = graph.example(1, 8, past=0)[0], torch.arange(8)[None]
    mine = theirs = graph.no_past(1)
    for _ in range(CONTINUED):
        total = torch.ones(1, int(positions[0, -1]) + 1, dtype=torch.long)
        plain = (ids, total, positions)[: len(graph.plain)]
        logits, *mine = graph(*plain, *mine)  # type: ignore[assignment]
        again, *theirs = feed(runtime, (*plain, *theirs))  # type: ignore[assignment]
        _compare((logits,), [again])
        ids, onnx_ids = logits[:, -1:].argmax(-1), again[:, -1:].argmax(-1)
        top = logits[0, -1].topk(2).values
        if not torch.equal(ids, onnx_ids) and float(top[0] - top[1]) > TOLERANCE * float(logits.abs().max()):
            raise RuntimeError("ONNX Runtime continues a text differently from torch")
        positions = positions[:, -1:] + 1


def feed(runtime: Any, arguments: tuple[Tensor, ...]) -> list[Tensor]:
    """The outputs of a session for arguments in the order of its inputs."""
    names = [node.name for node in runtime.get_inputs()]
    assert len(names) == len(arguments), names
    inputs = {name: tensor.numpy() for name, tensor in zip(names, arguments, strict=True)}
    return [torch.from_numpy(array) for array in runtime.run(None, inputs)]


def _compare(by_torch: tuple[Tensor, ...], by_onnx: list[Tensor]) -> None:
    for one, two in zip(by_torch, by_onnx, strict=True):
        near = one.shape == two.shape and float((one - two).abs().max()) <= TOLERANCE * float(one.abs().max())
        if not near:  # also where something is not a number
            raise RuntimeError("ONNX Runtime computes something else than torch, nothing is written")


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        yield
    finally:
        torch.random.set_rng_state(state)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of packages that no model here uses, and tells of every pass."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
