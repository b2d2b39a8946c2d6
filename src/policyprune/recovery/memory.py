"""What a training needs in memory beside the models that are there, and what would make it fit.

Counted for layers with norms, fused attention and AdamW, as of the LLaMA family; docs/recover.md has it in words.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from policyprune.config.schema import Trained
from policyprune.errors import UsageError
from policyprune.models.adapter import Block, adapt
from policyprune.recovery.options import Distill, Lora

GRADIENT, MOMENTS = 4, 8  # bytes of a trained parameter, as float32
STREAM = 26  # bytes of a channel of the residual stream, in each layer and of each token: its norms, and casts of them
FROZEN_STREAM = 18  # where the norms are not trained
LOGITS = {True: 31, False: 12}  # bytes of a logit, of both models where one teaches
HIDDEN = 12  # bytes of a channel whose hidden states are compared


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a model: parameters outside and inside its layers, and of its head, which is one with the embeddings or not;
    inputs and outputs of the layers' linear modules; layers, channels, numbers of a token that the way back through a
    layer needs, and tokens of the vocabulary."""

    outside: int
    inside: int
    head: int
    widths: int
    layers: int
    channels: int
    features: float
    vocabulary: int

    def kept(self, share: float) -> "Sizes":
        """Those of a model with a share of the units, the same in all layers."""
        inside = round(share * self.inside)
        return replace(
            self,
            inside=inside,
            widths=round(share * self.widths),
            features=share * self.features,
        )


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step holds: tokens at once, bytes of a weight of the model, whether it computes in bfloat16 beside its
    weights, and between how many processes the weights are shared."""

    batch: int
    length: int
    itemsize: int
    bfloat16: bool
    processes: int = 1


def sizes_of(model: PreTrainedModel) -> Sizes:
    """Of any model of a known family, also of one without weights."""
    adapter = adapt(model)
    layers = [model.get_submodule(path) for path in adapter.layers]
    inside = sum(weight.numel() for layer in layers for weight in layer.parameters())
    linear = [module for layer in layers for module in layer.modules() if isinstance(module, nn.Linear | Conv1D)]
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    assert isinstance(embeddings, nn.Parameter)
    return Sizes(
        outside=sum(weight.numel() for weight in model.parameters()) - inside,
        inside=inside,
        head=head.weight.numel() if head is not None else 0,
        widths=sum(sum(module.weight.shape) for module in linear),
        layers=len(layers),
        channels=embeddings.shape[1],
        features=sum(map(_features, adapter.blocks)) / len(layers),
        vocabulary=head.weight.shape[0] if head is not None else 0,
    )


def _features(block: Block) -> float:
    """How many numbers of a token the backward pass needs of a block: queries, keys, values and context of attention;
    of an FFN what goes into its activation and its output, of each input."""
    if block.kind == "ffn":
        return 2 * (len(block.parts) - 1) * block.count
    queries = block.count * block.width
    return 2 * queries + 2 * queries / max(block.queries, 1)


def needed(sizes: Sizes, options: Trained, step: Step) -> int:
    """Bytes at the highest point of a step: at the loss, or after the way back."""
    lora, teacher = isinstance(options, Lora), options.needs_teacher
    whole = sizes.outside + sizes.inside
    if isinstance(options, Lora):
        trained = options.rank * sizes.widths
        weights = step.itemsize * whole + 4 * trained
    else:
        trained = whole if options.trained == "all" else sizes.inside
        weights = 4 * whole
    held = (weights + MOMENTS * trained) / step.processes
    gradients = GRADIENT * trained / step.processes
    cast = 2 / step.processes if step.bfloat16 and not (lora and step.itemsize == 2) else 0
    casts, head = cast * (sizes.inside + sizes.head), cast * sizes.head
    number = 2 if step.bfloat16 else 4
    features = sizes.features * (1.25 if lora else 1)  # adapters keep what goes into the output projections, too
    layer = step.batch * step.length * ((FROZEN_STREAM if lora else STREAM) * sizes.channels + number * features)
    stream = step.batch * step.length * sizes.layers * sizes.channels
    activations = 4 * stream if options.gradient_checkpointing else sizes.layers * layer
    if isinstance(options, Distill) and options.hidden_loss:
        activations += HIDDEN * stream
    logits = LOGITS[teacher] * step.batch * step.length * sizes.vocabulary
    before = held + (gradients if options.accumulate > 1 else 0)
    if options.gradient_checkpointing:  # casts end with the forward pass, and a layer is computed once more
        return round(max(before + activations + max(casts + layer, head + logits), held + gradients + layer))
    return round(max(before + casts + activations + logits, held + gradients))


def check_fits(sizes: Sizes, options: Trained, step: Step, free: int) -> None:
    """UsageError where a training needs more than `free` bytes, naming the first option with which it would fit."""
    bytes_needed = needed(sizes, options, step)
    if bytes_needed <= free:
        return
    cure = next((cure for cure in _cures(options, step) if needed(sizes, cure.options, cure.step) <= free), None)
    advice = (
        f"use {cure.words}, which needs {_gigabytes(needed(sizes, cure.options, cure.step))}"
        if cure is not None
        else "no option makes it fit; share the weights between GPUs by policyprune recover and FSDP2"
    )
    raise UsageError(
        f"recovery: {options.name} needs {_gigabytes(bytes_needed)} of the GPU beside the models that are in it, and "
        f"{_gigabytes(free)} are free; {advice}"
    )


@dataclass(frozen=True)
class _Cure:
    options: Trained
    step: Step
    words: str


def _cures(options: Trained, step: Step) -> Iterator[_Cure]:
    """Ways to train in less memory, those first that change the result least."""
    again: dict[str, Any] = {} if options.gradient_checkpointing else {"gradient_checkpointing": True}
    single = {"batch_size": 1, "accumulate": options.accumulate * step.batch} if step.batch > 1 else {}
    kinds: list[tuple[Trained, dict[str, Any]]] = [(options, {})]
    if not isinstance(options, Lora):
        kinds += [(options, {"trained": "blocks"})] if options.trained == "all" else []
        kinds += [(_as_lora(options), {})]
    for kind, changes in kinds:
        for more in ({}, again, single, again | single):
            words = [f"recovery.{name}={str(value).lower()}" for name, value in {**changes, **more}.items()]
            if kind is not options:
                words = ["recovery=lora", *([] if kind.needs_teacher else ["recovery.task_loss=1"]), *words]
            own = replace(step, batch=1) if "batch_size" in more else step
            yield _Cure(replace(kind, **changes, **more), own, " ".join(words))


def _as_lora(options: Trained) -> Lora:
    known = {field.name for field in fields(Lora)} - {"name", "trained"}
    shared = {field.name: getattr(options, field.name) for field in fields(options) if field.name in known}
    return Lora(**{"task_loss": 1.0} | shared if not isinstance(options, Distill) else shared)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
