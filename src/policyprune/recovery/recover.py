"""Train a smaller model back; what is returned is never worse on held-out data than what came in."""

import copy
import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerState, TrainingArguments, set_seed

from policyprune.config.schema import Trained
from policyprune.errors import UsageError
from policyprune.models.adapter import adapt
from policyprune.processes import processes, rank
from policyprune.recovery.bar import TrainingBar
from policyprune.recovery.devices import check_device, free_memory, shards_weights
from policyprune.recovery.lora import merged, save_adapters, with_adapters
from policyprune.recovery.losses import answering, task_loss
from policyprune.recovery.material import Material
from policyprune.recovery.memory import Step, check_fits, sizes_of
from policyprune.recovery.options import Lora
from policyprune.recovery.pace import Pace, Report, judgements
from policyprune.recovery.trainer import Teacher, Teaching, arguments_of, load_trained


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Where a recovery happens: the dense model where one teaches, a folder that keeps what a killed process did, the
    share of the dense model that was kept, who is told of steps, where adapters are written, if anywhere, and which
    layers of the dense model are left, None where that is not known."""

    teacher: PreTrainedModel | None
    folder: Path
    keep: float
    seed: int
    report: Report
    adapters: Path | None = None
    layers: Sequence[int] | None = None


@dataclass(frozen=True)
class Recovered:
    """The model, with weights of its own and the widths of the one that came in, and what the record says."""

    model: PreTrainedModel
    facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Course:
    """A training that came to its end."""

    state: TrainerState
    arguments: TrainingArguments
    parameters: int
    seconds: float

    @property
    def best(self) -> Path | None:
        """The checkpoint of it with the least held-out loss, None where none is a number."""
        best = self.state.best_model_checkpoint
        return Path(str(self.arguments.output_dir)) / Path(best).name if best else None


def recover(model: PreTrainedModel, options: Trained, material: Material, around: Surroundings) -> Recovered:
    """Train a copy of `model`, which stays as it is. Where no training lowered the held-out loss, a plain copy returns.

    A process that was killed is gone on from what it saved in the folder. On the CPU the weights are the same then, bit
    for bit, unless seconds are the limit.
    """
    course = teach(model, options, material, around)
    gc.collect()  # the Trainer holds itself
    state, arguments = course.state, course.arguments
    before, *others = [row["eval_loss"] for row in judgements(state)]
    after = min((loss for loss in others if math.isfinite(loss)), default=math.inf)
    trained = _trained(model, options, course.best, around.adapters) if course.best is not None else None
    if trained is not None and model.dtype != torch.float32:  # what is returned is judged, not what was trained
        before, after = (held_out_loss(own, material, arguments) for own in (model, trained))
    gained = after < before
    facts = {
        "method": options.name,
        "outcome": "recovered" if gained else "no gain",
        **material.facts,
        "task_share": options.task_share(material.labelled),
        "trained_parameters": course.parameters,
        "learning_rate": arguments.learning_rate,
        "batch": arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size,
        "computed_in": "bfloat16" if arguments.bf16 else "float32",
        "steps": state.global_step,
        "tokens": state.num_input_tokens_seen,
        "seconds": round(course.seconds, 3),
        "held_out": {"items": len(material.held_out), "before": before, "after": after},
        "curve": _curve(state.log_history),
    }
    return Recovered(trained if trained is not None and gained else copy.deepcopy(model), facts)


def teach(model: PreTrainedModel, options: Trained, material: Material, around: Surroundings) -> Course:
    """Train a copy of `model`; what is best of it is in the folder then."""
    check_device(model.device)
    set_seed(around.seed)
    pace = Pace(options, around.report)
    rate = options.rate(around.keep, _channels(model))
    arguments = arguments_of(options, material, around.folder, model.device, rate, around.seed)
    if model.device.type == "cuda":
        length = material.collate(material.held_out[: arguments.train_batch_size])["input_ids"].shape[1]
        step = Step(
            batch=arguments.train_batch_size,
            length=length,
            itemsize=model.dtype.itemsize,
            bfloat16=arguments.bf16,
            processes=processes() if shards_weights() else 1,
        )
        check_fits(sizes_of(model), options, step, free_memory(model.device))
    student = _student(model, options)
    trainer = Teaching(student, arguments, material, pace, _teacher(model, options, around), options)
    total, unit = _longest(options)
    if rank() == 0:
        trainer.add_callback(TrainingBar("recovery", unit, total, lambda state: int(pace.share * total)))
    count = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    with torch.enable_grad():
        state = trainer.teach()
    return Course(state=state, arguments=arguments, parameters=count, seconds=pace.seconds)


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, material: Material, arguments: Any) -> float:
    """The task's mean loss on the held-out items, computed as in the training."""
    size, total = arguments.per_device_eval_batch_size, 0.0
    for first in range(0, len(material.held_out), size):
        items = material.held_out[first : first + size]
        batch = {name: tensor.to(model.device) for name, tensor in material.collate(items).items()}
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        with torch.autocast(model.device.type, torch.bfloat16, enabled=arguments.bf16):
            out = model(**inputs)
        total += len(items) * float(task_loss(out, batch))
    return total / len(material.held_out)


def _student(model: PreTrainedModel, options: Trained) -> Any:
    """A copy with weights of its own in float32, or with adapters; those that are trained ask for gradients.

    Where processes share the weights it is in the memory of the host, from where each takes its part.
    """
    device = torch.device("cpu") if shards_weights() else model.device
    copies: dict[int, Any] = {}
    for weight in model.parameters():
        own = weight.detach().to(device, weight.dtype if isinstance(options, Lora) else torch.float32, copy=True)
        copies[id(weight)] = nn.Parameter(own, requires_grad=options.trained == "all")
    student = copy.deepcopy(model, copies)
    if isinstance(options, Lora):
        return with_adapters(student, options)
    for layer in adapt(student).layers if options.trained == "blocks" else ():
        student.get_submodule(layer).requires_grad_(True)
    return student


def _trained(model: PreTrainedModel, options: Trained, checkpoint: Path, adapters: Path | None) -> PreTrainedModel:
    """A copy of `model` with weights that were trained, in its data types; adapters are written, and merged."""
    own: Any = copy.deepcopy(model)
    if isinstance(options, Lora):
        own = with_adapters(own, options)
    load_trained(own, checkpoint)
    if isinstance(options, Lora):
        if adapters is not None:
            save_adapters(own, adapters)
        own = merged(own)
    trained: PreTrainedModel = own.eval().requires_grad_(False)
    return trained


def _teacher(model: PreTrainedModel, options: Trained, around: Surroundings) -> Teacher | None:
    """The dense model. UsageError for one that predicts something else, and where hidden states are compared, and it is
    not known which, or widths differ."""
    if around.teacher is not None and _predicted(model) != _predicted(around.teacher):
        raise UsageError(
            f"teacher: the dense model tells {_predicted(around.teacher)} tokens or classes apart, the smaller one "
            f"{_predicted(model)}; it has to be the one that was pruned"
        )
    if around.teacher is None or not getattr(options, "hidden_loss", 0):
        return None if around.teacher is None else Teacher(around.teacher, ())
    own, count = len(adapt(model).layers), len(adapt(around.teacher).layers)
    kept = range(count) if around.layers is None else around.layers
    if len(kept) != own:
        raise UsageError(
            f"recovery.hidden_loss: the smaller model has {own} layers, the dense one {count}, and which of them are "
            "left is not known; use 0"
        )
    if _channels(model) != _channels(around.teacher):
        raise UsageError(
            f"recovery.hidden_loss: hidden states of {_channels(model)} channels are not those of "
            f"{_channels(around.teacher)}, which the dense model has; use 0"
        )
    return Teacher(around.teacher, answering(kept, count))


def _predicted(model: PreTrainedModel) -> int:
    """Between how many tokens, or classes, a model decides."""
    head: Any = model.get_output_embeddings()
    count: Any = model.config.num_labels if head is None else head.weight.shape[0]
    return int(count)


def _channels(model: PreTrainedModel) -> int:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight.shape[1]


def _longest(options: Trained) -> tuple[int, str]:
    """What the bar counts: seconds, tokens or steps."""
    steps, tokens, seconds = options.limits
    if seconds is not None:
        return max(1, round(seconds)), "s"
    return (tokens, "token") if tokens is not None else (steps or 1, "step")


def _curve(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each held-out loss the step, tokens, seconds, and the training loss at the last log before it."""
    rows, loss = [], None
    for row in history:
        loss = row.get("loss", loss)
        if "eval_loss" in row:
            facts = {"step": row["step"], "tokens": row["tokens"], "seconds": round(row["seconds"], 3)}
            rows.append({**facts, "loss": loss, "held_out_loss": row["eval_loss"]})
    return rows
