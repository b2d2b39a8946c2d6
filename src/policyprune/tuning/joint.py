"""All new output projections together, by descent of the smaller model's divergence from the dense one."""

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from policyprune.models.layerwise import projection
from policyprune.progress import bar
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import Key
from policyprune.surgery.shrink import cut, twin
from policyprune.tasks.divergence import Divergence
from policyprune.tuning.teacher_student import Fitted, Lesson

log = logging.getLogger(__name__)

BATCH = 8  # sequences at a time that are judged
STEPS, MOST_PASSES = 100, 4  # where nobody says how many passes
WARM = 4  # steps of a rising rate
BETAS = (0.9, 0.95)
LONGEST = 1.0  # gradient


def descend(
    prunable: PrunableModel,
    fitted: Fitted,
    lesson: Lesson,
    passes: int | None,
    batch_size: int,
    rate: float,
) -> Fitted:
    """Weights (d, kept features) of the output projections after AdamW on KL(dense || smaller model).

    It starts from `fitted`, whose mask stays. A step moves a weight by about `rate` times its root mean square, times
    the square root of the divergence at the start: the nearer the model, the shorter its way. Of the weights before,
    and those after each of the `passes`, it keeps the ones with the least divergence on the sequences held out, on the
    first batch where there are none.
    """
    assert lesson.data is not None
    divergence = Divergence(lesson.data, prunable.model)
    student = _Student(prunable, fitted)
    if not student.weights:
        return fitted
    judging = lesson.held_out if len(lesson.held_out) else lesson.rows[0]

    def judged() -> float:
        with torch.no_grad(), student.precision():
            losses = [divergence.loss(student.model, batch) for batch in judging.split(BATCH)]
        return float(torch.cat(losses).double().mean())

    best, least = fitted.compensation, judged()
    log.info("divergence of %d sequences: %.4g", len(judging), least)
    if not math.isfinite(least):
        return fitted
    generator = torch.Generator().manual_seed(0)
    once = sum(math.ceil(len(batch) / batch_size) for batch in lesson.rows)
    passes = passes or min(MOST_PASSES, math.ceil(STEPS / once))
    steps = passes * once
    rate *= min(1.0, math.sqrt(max(least, 0.0)))
    groups = [{"params": [own], "lr": rate * float(own.detach().square().mean().sqrt())} for own in student.weights]
    optimizer = torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_rate(step, steps))
    with bar(steps, "tuning", "step") as progress, torch.enable_grad():
        for _ in range(passes):
            for batch in _shuffled(lesson.rows, batch_size, generator):
                with student.precision():
                    loss = divergence.loss(student.model, batch).mean()
                for own, gradient in zip(student.weights, torch.autograd.grad(loss, student.weights), strict=True):
                    own.grad = gradient
                nn.utils.clip_grad_norm_(student.weights, LONGEST)
                optimizer.step()
                schedule.step()
                progress.update()
            value = judged()
            log.info("divergence of the same after a pass: %.4g", value)
            if value <= least:
                best, least = replace(fitted.compensation, weights=student.found()), value
    return replace(fitted, compensation=best)


class _Student:
    """The smaller model. Of its weights, those that `fitted` has changed are trained, in float32."""

    def __init__(self, prunable: PrunableModel, fitted: Fitted) -> None:
        self._dense = prunable.model
        self.model: PreTrainedModel = twin(self._dense)
        self._smaller = prunable.on(self.model)
        cut(self._smaller, fitted.mask, fitted.compensation)
        self._keys = list(fitted.compensation.weights)
        self.weights: list[nn.Parameter] = []
        for key, weight in fitted.compensation.weights.items():
            linear = self.model.get_submodule(prunable.blocks[key].out)
            own = weight.T if isinstance(linear, Conv1D) else weight
            self.weights.append(nn.Parameter(own.to(linear.weight.device, torch.float32, copy=True)))  # type: ignore[arg-type,union-attr]
            linear.weight = self.weights[-1]
        self._keep_residual_exact()

    def found(self) -> dict[Key, Tensor]:
        """The weights (d, kept features) as they are now, float32 on the CPU."""
        blocks = self._smaller.blocks
        return {key: projection(self.model, blocks[key])[0].float().cpu().clone() for key in self._keys}

    def _keep_residual_exact(self) -> None:
        """Have the residual in float32: what one step changes is lost in the rounding of its largest channels."""
        self.model.get_input_embeddings().register_forward_hook(lambda module, args, out: out.float())
        for module in self.model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.dim() == 1:  # norms and biases
                    module._parameters[name] = nn.Parameter(parameter.detach().float(), requires_grad=False)

    def precision(self) -> AbstractContextManager[object]:
        """Matrix products in the data type of the dense model."""
        dtype = self._dense.dtype
        return torch.autocast(self._dense.device.type, dtype, enabled=dtype != torch.float32)


def _shuffled(taught: list[Tensor], size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """All sequences once, those of a batch (B,) of about the same length."""
    batches = [part for batch in taught for part in batch[torch.randperm(len(batch), generator=generator)].split(size)]
    for place in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[place]


def _share_of_rate(step: int, steps: int) -> float:
    """A rise, then half a cosine."""
    return min(1.0, (step + 1) / WARM) * (1 + math.cos(math.pi * step / steps)) / 2
