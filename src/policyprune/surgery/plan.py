"""A plan: which units a pruned model keeps, as readable JSON, to be laid on the same dense model again."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from policyprune.config.python_names import in_python
from policyprune.errors import UsageError
from policyprune.models.adapter import adapt
from policyprune.models.unequal import dimension
from policyprune.pruning.compensation import Compensation
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import HIDDEN, Space
from policyprune.surgery.checkpoint import auto_class
from policyprune.surgery.shrink import shrink


@dataclass(frozen=True, kw_only=True)
class Base:
    """The dense model that a plan belongs to; `parameters` and `blocks` tell it from others."""

    source: str
    revision: str | None
    dtype: str
    task: str
    head: str
    model_type: str
    parameters: int
    blocks: list[list[Any]]  # layer, kind, units
    attention: str | None = None  # how the run computed it, where model.attn_implementation was auto


@dataclass(frozen=True)
class Plan:
    """The units kept, mask (n,) bool over `space`, and what a tuning changed."""

    base: Base
    space: Space
    mask: Tensor
    compensation: Compensation | None

    @in_python()
    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        """The dense model without what the plan leaves out; UsageError for a model of another shape.

        Weights that are not cut are shared with the dense model, which stays as it is.
        """
        check_base(self, model)
        return shrink(PrunableModel.over(model, self.space), self.mask, self.compensation)


def base_of(model: PreTrainedModel, source: str, revision: str | None, task: str) -> Base:
    """Describe a dense model, before anything is cut from it."""
    adapter = adapt(model)
    commit = getattr(model.config, "_commit_hash", None)
    return Base(
        source=source,
        revision=commit or revision,
        dtype=str(model.dtype).removeprefix("torch."),
        task=task,
        head=auto_class(model),
        model_type=model.config.model_type,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        blocks=[[block.layer, block.kind, block.count] for block in adapter.blocks],
        attention=model.config._attn_implementation,
    )


def check_base(plan: Plan, model: PreTrainedModel) -> None:
    """UsageError where a model (its structure is enough) is not of the shape that the plan was made for."""
    wanted, actual = plan.base, base_of(model, plan.base.source, None, plan.base.task)
    if actual.model_type != wanted.model_type:
        raise UsageError(
            f"model.source: the plan is for a model of type {wanted.model_type!r}, not {actual.model_type!r}"
        )
    if actual.head != wanted.head:
        raise UsageError(f"model.source: the plan is for {wanted.head}, not {actual.head}")
    if len(actual.blocks) != len(wanted.blocks):
        raise UsageError(
            f"model.source: the plan is for {len(wanted.blocks)} blocks, this model has {len(actual.blocks)}"
        )
    for (layer, kind, count), block in zip(wanted.blocks, actual.blocks, strict=True):
        if [layer, kind, count] != block:
            raise UsageError(
                f"model.source: the plan is for {count} {kind} units in layer {layer}, this model has {block[2]} "
                + (f"{block[1]} units in layer {block[0]}" if block[:2] != [layer, kind] else "")
            )
    if actual.parameters != wanted.parameters:
        raise UsageError(
            f"model.source: the plan is for {wanted.parameters:,} parameters, this model has {actual.parameters:,}"
        )
    adapter = adapt(model)
    channels = adapter.hidden.count if adapter.hidden is not None and not adapter.hidden.obstacle else 0
    stated = next((group.count for group in plan.space.groups if (group.layer, group.kind) == HIDDEN), channels)
    if stated != channels:
        raise UsageError(
            f"model.source: the plan is for {stated} hidden channels, this model can lose {channels or 'none'}"
        )
    if plan.compensation is not None:
        _check_compensation(plan, plan.compensation, PrunableModel.over(model, plan.space))


def _check_compensation(plan: Plan, compensation: Compensation, prunable: PrunableModel) -> None:
    """UsageError where new weights or biases are of another shape than the output projections they are for."""
    kept = {key: int(view.sum()) for key, view in plan.space.views(plan.mask).items()}
    model, blocks = prunable.model, prunable.blocks
    for name, tensors in (("weight", compensation.weights), ("bias", compensation.biases)):
        for key, tensor in tensors.items():
            shape: list[int] = []
            if key in blocks:
                out = model.get_submodule(blocks[key].out)
                weight = out.weight
                assert isinstance(weight, Tensor)
                shape = [weight.shape[dimension(out, "out")]]
                shape += [kept.get(key, blocks[key].count) * blocks[key].width] if name == "weight" else []
            if list(tensor.shape) != shape or not bool(tensor.isfinite().all()):
                raise UsageError(
                    f"plan: the mask file's {name} for the {key[1]} of layer {key[0]} is no {shape} of numbers"
                )
