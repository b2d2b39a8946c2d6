"""ONNX: a folder with model.onnx, checked with ONNX Runtime against torch before it gets its name."""

import copy
import importlib.util
import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.errors import UsageError
from policyprune.models.adapter import adapt
from policyprune.models.families import family_of
from policyprune.storage.files import write_folder
from policyprune.surgery.checkpoint import auto_class
from policyprune.surgery.onnx_graph import Decoding, Encoding, graph_of

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
HEADS = ("AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModelForQuestionAnswering")
TOLERANCE = 1e-3  # of the largest output
CONTINUED = 32  # tokens of the greedy continuation that is compared


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
