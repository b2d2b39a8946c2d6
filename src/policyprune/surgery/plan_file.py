"""`plan.json`: the kept units as readable JSON. Whatever is not exactly a plan is refused in one line."""

import hashlib
import json
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from policyprune.errors import UsageError
from policyprune.pruning.compensation import Compensation
from policyprune.pruning.mask_file import load_compensation, load_mask
from policyprune.pruning.space import HIDDEN, Group, Space
from policyprune.storage.files import write_whole
from policyprune.storage.record_file import MASK_FILE
from policyprune.surgery.plan import Base, Plan

FORMAT = "policyprune-plan-1"
EDITS = "edits"  # key that names the mask file beside the plan, whose weights and biases are too many for a text
KINDS = ("attention", "ffn")
HEADS = ("AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModelForQuestionAnswering")
DTYPES = ("float32", "bfloat16", "float16")
LONGEST = 1000  # letters of a text
MOST = 100_000_000  # units: ten times those of the largest models, and little memory
RANGES = re.compile(r"[0-9]{1,9}(-[0-9]{1,9})?(,[0-9]{1,9}(-[0-9]{1,9})?)*")


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan atomically: kept units as ranges, scales in the order of the kept units.

    New weights and biases are not in it: it names the mask file beside it, which has to be there when it is read.
    """
    base, compensation = asdict(plan.base), plan.compensation
    scales = compensation.scales if compensation is not None else None
    factors = plan.space.views(scales.float().cpu()) if scales is not None else {}
    units = []
    for (layer, kind), view in plan.space.views(plan.mask.bool().cpu()).items():
        group: dict[str, Any] = {"layer": layer, "kind": kind, "of": len(view), "kept": _ranges(view)}
        if scales is not None:
            group["scales"] = factors[layer, kind][view].tolist()
        units.append(group)
    content: dict[str, Any] = {"format": FORMAT, "base": base}
    if compensation is not None and (compensation.weights or compensation.biases):
        content[EDITS] = MASK_FILE
    content["units"] = units
    lines = [f'  "format": "{FORMAT}"', f'  "checksum": "{_checksum(content)}"', f'  "base": {_in_lines(base)}']
    lines += [f'  "{EDITS}": "{MASK_FILE}"'] if EDITS in content else []
    lines += ['  "units": [\n' + ",\n".join("    " + json.dumps(group) for group in units) + "\n  ]"]
    write_whole(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def read_plan(path: Path) -> Plan:
    """Read a plan; UsageError for anything else, by the file's name and what is wrong with it."""
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"plan: {str(path)!r} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"plan: {str(path)!r} is no plan of policyprune: it is no JSON") from error
    try:
        return _parsed(stated, path)
    except (_WrongError, RecursionError) as error:
        raise UsageError(f"plan: {str(path)!r} is no plan of policyprune: {error}") from error


class _WrongError(Exception):
    """What is wrong with a plan, in words that follow its name."""


def _parsed(stated: Any, path: Path) -> Plan:
    if isinstance(stated, dict) and isinstance(stated.get("format"), str) and stated["format"] != FORMAT:
        raise UsageError(f"plan: {str(path)!r} has the format {stated['format'][:40]!r}, this version reads {FORMAT}")
    _has_keys(stated, "it", ["format", "base", "units"], ["checksum", EDITS])
    base = _base(stated["base"])
    checksum = stated.pop("checksum", None)
    if checksum is not None and checksum != _checksum(stated):
        raise _WrongError('it was changed after it was written; one that is changed on purpose has no line "checksum"')
    units = stated["units"]
    _is(isinstance(units, list) and units, "units", "a list of groups", units)
    space = Space(tuple(_group(group, f"units[{index}]") for index, group in enumerate(units)))
    _check_groups(space, base, written=checksum is not None)
    masks = [_mask(group, f"units[{index}].kept") for index, group in enumerate(units)]
    mask = torch.cat(masks)
    scaled = [index for index, group in enumerate(units) if "scales" in group]
    compensation = None
    if scaled:
        _must(len(scaled) == len(units), f"units has scales in {len(scaled)} of {len(units)} groups")
        pairs = enumerate(zip(units, masks, strict=True))
        compensation = Compensation(
            torch.cat([_scales(group["scales"], view, f"units[{index}].scales") for index, (group, view) in pairs])
        )
    if EDITS in stated:
        _is(stated[EDITS] == MASK_FILE, EDITS, repr(MASK_FILE), stated[EDITS])
        _must(not scaled, "it has scales and edits, which no tuning gives")
        compensation = _compensation(path, space, mask)
    return Plan(base, space, mask, compensation)


def _base(stated: Any) -> Base:
    _has_keys(stated, "base", [field.name for field in fields(Base)])
    for key in ("source", "task", "model_type"):
        _is(_text(stated[key]), f"base.{key}", "a text", stated[key])
    for key in ("revision", "attention"):
        _is(stated[key] is None or _text(stated[key]), f"base.{key}", "a text", stated[key])
    _is(stated["head"] in HEADS, "base.head", f"one of {', '.join(HEADS)}", stated["head"])
    _is(stated["dtype"] in DTYPES, "base.dtype", f"one of {', '.join(DTYPES)}", stated["dtype"])
    _is(_number(stated["parameters"]) and stated["parameters"] > 0, "base.parameters", "a number", stated["parameters"])
    blocks = stated["blocks"]
    _is(isinstance(blocks, list) and blocks, "base.blocks", "a list of [layer, kind, units]", blocks)
    for index, block in enumerate(blocks):
        three = isinstance(block, list) and len(block) == 3
        right = three and _number(block[0]) and block[1] in KINDS and _number(block[2])
        _is(right and 0 <= block[2] <= MOST, f"base.blocks[{index}]", "[layer, kind, units]", block)
    keys = [(block[0], block[1]) for block in blocks]
    wanted = [(layer, kind) for layer in range(len(keys) // 2) for kind in KINDS]
    _must(sorted(keys) == wanted, "base.blocks has not the attention and ffn of each layer once")
    return Base(**stated)


def _text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST


def _group(stated: Any, where: str) -> Group:
    _has_keys(stated, where, ["layer", "kind", "of", "kept"], ["scales"])
    _is(_number(stated["layer"]), f"{where}.layer", "a number", stated["layer"])
    _is(stated["kind"] in (*KINDS, HIDDEN[1]), f"{where}.kind", f"one of {', '.join(KINDS)}, hidden", stated["kind"])
    _is(_number(stated["of"]) and 0 < stated["of"] <= MOST, f"{where}.of", "a number of units", stated["of"])
    return Group(stated["layer"], stated["kind"], stated["of"])


def _check_groups(space: Space, base: Base, written: bool) -> None:
    """The groups are blocks of the base, each once; all of a kind unless the plan is as it was `written`."""
    keys = [(group.layer, group.kind) for group in space.groups]
    if HIDDEN in keys:
        _must(len(keys) == 1, "units has other groups beside the hidden channels")
        return
    counts = {(layer, kind): count for layer, kind, count in base.blocks}
    for group in space.groups:
        key, name = (group.layer, group.kind), f"{group.kind} of layer {group.layer}"
        _must(key in counts, f"units has {name}, which base.blocks has not")
        _must(keys.count(key) == 1, f"units has {name} twice")
        whole = group.count == counts[key]
        by_query_heads = group.kind == "attention" and counts[key] and group.count % counts[key] == 0
        _must(whole or by_query_heads, f"{name} is of {group.count}, base.blocks says {counts[key]}")
    kinds = {kind for _, kind in keys}
    wanted = [key for key, count in counts.items() if key[1] in kinds and count]
    missing = [f"{kind} of layer {layer}" for layer, kind in wanted if (layer, kind) not in keys]
    _must(written or not missing, f"units has nothing for {', '.join(missing[:3])}")
    _must(keys == [key for key in wanted if key in keys], "units is in another order than base.blocks")


def _mask(stated: dict[str, Any], where: str) -> Tensor:
    kept, count = stated["kept"], stated["of"]
    form = f"ranges of numbers below {count} in rising order, like 0-4,7"
    _is(isinstance(kept, str) and (not kept or RANGES.fullmatch(kept)), where, form, kept)
    mask = torch.zeros(count, dtype=torch.bool)
    for part in kept.split(",") if kept else []:
        first, _, last = part.partition("-")
        _is(int(last or first) < count, where, form, kept)
        mask[int(first) : int(last or first) + 1] = True
    _is(_ranges(mask) == kept, where, form, kept)
    return mask


def _scales(stated: Any, mask: Tensor, where: str) -> Tensor:
    kept = int(mask.sum())
    _is(isinstance(stated, list) and len(stated) == kept, where, f"a list of {kept} numbers", stated)
    numbers = all(isinstance(scale, float | int) and not isinstance(scale, bool) for scale in stated)
    _is(numbers, where, "numbers", stated)
    _is(all(abs(scale) <= torch.finfo(torch.float32).max for scale in stated), where, "finite numbers", stated)
    spread = torch.ones(len(mask))
    spread[mask] = torch.tensor([float(scale) for scale in stated])
    return spread


def _compensation(path: Path, space: Space, mask: Tensor) -> Compensation | None:
    """What the mask file beside a plan holds; UsageError where it is not the plan's."""
    file = path.parent / MASK_FILE
    if not file.is_file():
        raise UsageError(f"plan: {str(path)!r} needs the weights in {MASK_FILE} beside it, which is not there")
    try:
        mask_space, kept = load_mask(file)
        compensation = load_compensation(file, space)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UsageError(f"plan: {str(file)!r} cannot be read: {' '.join(str(error).split())}") from error
    if mask_space != space or not torch.equal(kept, mask):
        raise UsageError(
            f"plan: {str(path)!r} keeps other units than {MASK_FILE} beside it, they are of different runs"
        )
    return compensation


def _ranges(mask: Tensor) -> str:
    """The numbers of the kept units as text: 0-4,7,9-20."""
    parts: list[list[int]] = []
    for index in mask.nonzero().flatten().tolist():
        if parts and index == parts[-1][1] + 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _in_lines(base: dict[str, Any]) -> str:
    """An object with a line per key, the list of blocks in one."""
    return "{\n" + ",\n".join(f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in base.items()) + "\n  }"


def _number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 62


def _has_keys(stated: Any, where: str, needed: list[str], more: list[str] | None = None) -> None:
    _is(isinstance(stated, dict), where, "an object", stated)
    missing = [key for key in needed if key not in stated]
    _must(not missing, f"{where} has no {', '.join(missing)}")
    unknown = [json.dumps(key) for key in stated if key not in (*needed, *(more or []))]
    _must(not unknown, f"{where} has also {', '.join(unknown[:3])}, which no plan has")


def _is(right: Any, where: str, wanted: str, value: Any) -> None:
    shown = "" if right else json.dumps(value)
    _must(right, f"{where} is {shown if len(shown) < 60 else shown[:57] + '...'}, not {wanted}")


def _must(right: Any, sentence: str) -> None:
    if not right:
        raise _WrongError(sentence)
