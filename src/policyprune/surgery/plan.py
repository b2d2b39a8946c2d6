"""A plan: which units a pruned model keeps, as readable JSON, to be laid on the same dense model again."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.errors import UsageError
from policyprune.files import write_whole
from policyprune.models.adapter import adapt
from policyprune.pruning.edits import Edits, load_edits
from policyprune.pruning.mask import load_mask
from policyprune.pruning.space import Group, Space
from policyprune.surgery.checkpoint import auto_class
from policyprune.surgery.shrink import shrink

FORMAT = "policyprune-plan-1"
FILE = "plan.json"
EDITS = "mask.safetensors"  # beside the plan: weights and biases, which are too many for a text


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Plan:
    """The units kept, mask (n,) bool over `space`, and what a tuning changed."""

    base: Base
    space: Space
    mask: Tensor
    edits: Edits | None


def base_of(model: PreTrainedModel, source: str, revision: str | None, task: str) -> Base:
    """Describe a dense model, before anything is cut from it."""
    adapter = adapt(model)
    commit = getattr(model.config, "_commit_hash", None)
    return Base(
        source,
        commit or revision,
        str(model.dtype).removeprefix("torch."),
        task,
        auto_class(model),
        model.config.model_type,
        sum(parameter.numel() for parameter in model.parameters()),
        [[block.layer, block.kind, block.count] for block in adapter.blocks],
    )


def write_plan(path: Path, base: Base, space: Space, mask: Tensor, edits: Edits | None) -> None:
    """Write a plan atomically: kept units as ranges, scales in the order of the kept units.

    New weights and biases are not in it: it names the mask file beside it, which has to be there when it is read.
    """
    scales = edits.scales if edits is not None else None
    factors = space.views(scales.float().cpu()) if scales is not None else {}
    units = []
    for (layer, kind), view in space.views(mask.bool().cpu()).items():
        own: dict[str, Any] = {"layer": layer, "kind": kind, "of": len(view), "kept": _ranges(view.nonzero().flatten())}
        if scales is not None:
            own["scales"] = factors[layer, kind][view].tolist()
        units.append(own)
    lines = ",\n".join("    " + json.dumps(own) for own in units)
    stated = asdict(base)
    blocks = json.dumps(stated.pop("blocks"))
    head = json.dumps(stated, indent=2).removesuffix("\n}").replace("\n", "\n  ")
    opening = f'{{\n  "format": "{FORMAT}",\n  "base": {head},\n    "blocks": {blocks}\n  }},\n'
    if edits is not None and (edits.weights or edits.biases):
        opening += f'  "edits": "{EDITS}",\n'
    text = f'{opening}  "units": [\n{lines}\n  ]\n}}\n'
    write_whole(path, text.encode())


def read_plan(path: Path) -> Plan:
    """Read a plan; UsageError for anything else."""
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        if stated["format"] != FORMAT:
            raise UsageError(f"plan: {str(path)!r} has the format {stated['format']!r}, this version reads {FORMAT}")
        units = stated["units"]
        space = Space(tuple(Group(own["layer"], own["kind"], own["of"]) for own in units))
        masks = [_mask(own["kept"], own["of"]) for own in units]
        scales = None
        if any("scales" in own for own in units):
            scales = torch.cat([_spread(mask, own["scales"]) for mask, own in zip(masks, units, strict=True)])
        mask = torch.cat(masks)
        edits = Edits(scales) if scales is not None else None
        return Plan(Base(**stated["base"]), space, mask, _edits(path, space, mask) if "edits" in stated else edits)
    except OSError as error:
        raise UsageError(f"plan: {str(path)!r} cannot be read: {error.strerror}") from error
    except UsageError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
        raise UsageError(f"plan: {str(path)!r} is no plan of policyprune") from error


def check_base(plan: Plan, model: PreTrainedModel) -> None:
    """UsageError where a model (its structure is enough) is not of the shape that the plan was made for."""
    wanted, found = plan.base, base_of(model, plan.base.source, None, plan.base.task)
    if found.model_type != wanted.model_type:
        raise UsageError(
            f"model.source: the plan is for a model of type {wanted.model_type!r}, not {found.model_type!r}"
        )
    if found.head != wanted.head:
        raise UsageError(f"model.source: the plan is for {wanted.head}, not {found.head}")
    if len(found.blocks) != len(wanted.blocks):
        raise UsageError(
            f"model.source: the plan is for {len(wanted.blocks)} blocks, this model has {len(found.blocks)}"
        )
    for (layer, kind, count), (_, _, there) in zip(wanted.blocks, found.blocks, strict=True):
        if count != there:
            raise UsageError(
                f"model.source: the plan is for {count} {kind} units in layer {layer}, this model has {there}"
            )
    if found.parameters != wanted.parameters:
        raise UsageError(
            f"model.source: the plan is for {wanted.parameters:,} parameters, this model has {found.parameters:,}"
        )


def lay(plan: Plan, model: PreTrainedModel) -> PreTrainedModel:
    """The dense model without what the plan leaves out; UsageError for a model of another shape."""
    check_base(plan, model)
    return shrink(model, adapt(model), plan.space, plan.mask, plan.edits)


def _edits(path: Path, space: Space, mask: Tensor) -> Edits | None:
    """What the mask file beside a plan holds; UsageError where it is not the plan's."""
    file = path.parent / EDITS
    if not file.is_file():
        raise UsageError(f"plan: {str(path)!r} needs the weights in {EDITS} beside it, which is not there")
    own_space, own_mask = load_mask(file)
    if own_space != space or not torch.equal(own_mask, mask):
        raise UsageError(f"plan: {str(path)!r} keeps other units than {EDITS} beside it, they are of different runs")
    return load_edits(file, space)


def _ranges(kept: Tensor) -> str:
    """Sorted numbers as text: 0-4,7,9-20."""
    parts: list[list[int]] = []
    for index in kept.tolist():
        if parts and index == parts[-1][1] + 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _mask(kept: str, count: int) -> Tensor:
    mask = torch.zeros(count, dtype=torch.bool)
    for part in kept.split(",") if kept else []:
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if found is None or int(found[2] or found[1]) >= count:
            raise ValueError(part)
        mask[int(found[1]) : int(found[2] or found[1]) + 1] = True
    return mask


def _spread(mask: Tensor, scales: list[float]) -> Tensor:
    spread = torch.ones(len(mask))
    spread[mask] = torch.tensor(scales)
    return spread
