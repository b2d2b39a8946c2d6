"""Train a smaller model back; what is returned is never worse on held-out data than what came in."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, set_seed

from policyprune.config.schema import Trained
from policyprune.models.adapter import adapt
from policyprune.processes import rank
from policyprune.recovery.bar import TrainingBar
from policyprune.recovery.lora import merged, save_adapters, with_adapters
from policyprune.recovery.losses import task_loss
from policyprune.recovery.material import Material
from policyprune.recovery.options import Lora
from policyprune.recovery.pace import Pace, Report, judgements
from policyprune.recovery.trainer import Teaching, arguments_of, check_device


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Where a recovery happens: the dense model where one teaches, a folder that keeps what a killed process did, the
    share of the dense model that was kept, who is told of steps, and where adapters are written, if anywhere."""

    teacher: PreTrainedModel | None
    folder: Path
    keep: float
    seed: int
    report: Report
    adapters: Path | None = None


@dataclass(frozen=True)
class Recovered:
    """The model, with weights of its own and the widths of the one that came in, and what the record says."""

    model: PreTrainedModel
    facts: dict[str, Any]


def recover(model: PreTrainedModel, options: Trained, material: Material, around: Surroundings) -> Recovered:
    """Train a copy of `model`, which stays as it is. Where no training lowered the held-out loss, a plain copy returns.

    A process that was killed is gone on from what it saved in the folder. On the CPU the weights are the same then, bit
    for bit, unless seconds are the limit.
    """
    check_device(model.device)
    set_seed(around.seed)
    pace = Pace(options, around.report)
    embeddings = model.get_input_embeddings().weight
    assert isinstance(embeddings, Tensor)
    rate = options.rate(around.keep, embeddings.shape[1])
    arguments = arguments_of(options, material, around.folder, model.device, rate, around.seed)
    student = _student(model, options)
    count = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    trainer = Teaching(student, arguments, material, pace, around.teacher, options)
    total, unit = _longest(options)
    if rank() == 0:
        trainer.add_callback(TrainingBar("recovery", unit, total, lambda state: int(pace.share * total)))
    with torch.enable_grad():
        state = trainer.teach()
    trained = trainer.accelerator.unwrap_model(student, keep_fp32_wrapper=False)
    adapted = trained if isinstance(options, Lora) else None
    if adapted is not None:
        if around.adapters is not None and rank() == 0:
            save_adapters(adapted, around.adapters)
        trained = merged(adapted)
    trained.eval().requires_grad_(False)
    if hasattr(model.config, "use_cache"):
        trained.config.use_cache = model.config.use_cache  # which the Trainer turns off
    before, *others = [row["eval_loss"] for row in judgements(state)]
    after = min((loss for loss in others if math.isfinite(loss)), default=math.inf)
    _cast_back(trained, model)
    if model.dtype != torch.float32:  # what is returned is judged, not what was trained
        before, after = (held_out_loss(own, material, arguments) for own in (model, trained))
    gained = after < before
    facts = {
        "method": options.name,
        "outcome": "recovered" if gained else "no gain",
        **material.facts,
        "task_share": options.task_share(material.labelled),
        "trained_parameters": count,
        "learning_rate": rate,
        "batch": arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size,
        "computed_in": "bfloat16" if arguments.bf16 else "float32",
        "steps": state.global_step,
        "tokens": state.num_input_tokens_seen,
        "seconds": round(pace.seconds, 3),
        "held_out": {"items": len(material.held_out), "before": before, "after": after},
        "curve": _curve(state.log_history),
    }
    return Recovered(trained if gained else copy.deepcopy(model), facts)


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
    """A copy with weights of its own in float32, or with adapters; those that are trained ask for gradients."""
    student = copy.deepcopy(model)
    if isinstance(options, Lora):
        return with_adapters(student, options)
    for parameter in student.parameters():
        parameter.data = parameter.data.float()
    student.requires_grad_(options.trained == "all")
    for layer in adapt(student).layers if options.trained == "blocks" else ():
        student.get_submodule(layer).requires_grad_(True)
    return student


def _cast_back(trained: nn.Module, like: nn.Module) -> None:
    """Give the weights the data types that they had."""
    dtypes = {name: parameter.dtype for name, parameter in like.named_parameters()}
    for name, parameter in trained.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])


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
