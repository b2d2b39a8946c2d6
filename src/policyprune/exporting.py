"""The verbs export and apply: a run, a checkpoint or a plan becomes files for other tools."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.config.schema import Applying, Exporting, Model
from policyprune.errors import UsageError
from policyprune.models.loading import load_as, skeleton_as
from policyprune.results.card import write_card
from policyprune.results.record import read_record
from policyprune.surgery import formats
from policyprune.surgery.checkpoint import auto_class
from policyprune.surgery.plan import Plan, check_base, lay
from policyprune.surgery.plan_file import EDITS, FILE, read_plan

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def export(config: Exporting) -> Path:
    """Write one format and return where it is; a run that wrote no checkpoint is made again from its plan."""
    settings = formats.Settings(config.max_shard_size, config.dtype or "f16")
    path = _target(config, settings)
    if config.format == "plan":
        return _copy_plan(config, path)
    _check_free(path, config.format == "gguf")
    run = Path(config.run) if config.run else None
    plan = read_plan(run / FILE) if run is not None and not (run / "checkpoint").is_dir() else None
    dense = _planned(config.model, plan) if plan else config.model
    empty = skeleton_as(dense, _head(plan))
    if plan:
        check_base(plan, empty)
    formats.check_formats([config.format], empty, settings)
    model, tokenizer = _load(dense, auto_class(empty), plan)
    if config.format == "hf" and config.dtype is not None:
        model = model.to(DTYPES[config.dtype])  # type: ignore[arg-type]
    formats.write_format(config.format, model, tokenizer, path, settings)
    record = read_record(run) if run is not None else None
    if config.format == "hf" and run is not None and record is not None and "budget" in record.config:
        write_card(record, path, read_plan(run / FILE).base.source)
    print(path)
    return path


def apply(config: Applying) -> Path:
    """Write the checkpoint that a plan makes of its dense model, and return where it is."""
    plan = read_plan(Path(config.plan))
    path = Path(config.output) if config.output else Path(config.plan).parent / "applied"
    _check_free(path, file=False)
    check_base(plan, skeleton_as(config.model, _head(plan)))
    model, tokenizer = _load(config.model, plan.base.head, plan)
    formats.write_format("hf", model, tokenizer, path, formats.Settings(config.max_shard_size, "f16"))
    print(path)
    return path


def _load(config: Model, kind: str, plan: Plan | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, tokenizer = load_as(config, getattr(transformers, kind))
    return (lay(plan, model) if plan else model), tokenizer


def _planned(config: Model, plan: Plan) -> Model:
    """The dense model of a plan, held as the run held it."""
    return replace(config, source=plan.base.source, revision=plan.base.revision, dtype=plan.base.dtype)


def _head(plan: Plan | None) -> Any:
    return getattr(transformers, plan.base.head) if plan else None


def _target(config: Exporting, settings: formats.Settings) -> Path:
    if config.output:
        return Path(config.output)
    suffix = f"-{config.dtype}" if config.format == "hf" and config.dtype else ""
    if config.run is not None:
        known = (
            Path(config.run) / FILE
            if config.format == "plan"
            else formats.target(config.format, Path(config.run), settings)
        )
        return known.with_name(known.name + suffix)
    own = Path(config.model.source)
    beside = own.parent if own.exists() else Path()
    ending = f"-{settings.gguf_dtype}.gguf" if config.format == "gguf" else f"-{config.format}{suffix}"
    return beside / (config.model.name + ending)


def _copy_plan(config: Exporting, path: Path) -> Path:
    assert config.run is not None
    source = Path(config.run) / FILE
    edits = read_plan(source).edits
    if path != source:
        _check_free(path, file=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if edits is not None and (edits.weights or edits.biases) and path.parent.resolve() != source.parent.resolve():
            if (path.parent / EDITS).exists():
                raise UsageError(
                    f"output: {str(path)!r} needs its {EDITS} beside it, where there is one; name another folder"
                )
            shutil.copyfile(source.with_name(EDITS), path.parent / EDITS)
        shutil.copyfile(source, path)
    print(path)
    return path


def _check_free(path: Path, file: bool) -> None:
    """UsageError where `output` would take the place of something that is no export."""
    if file and path.is_dir():
        raise UsageError(f"output: {str(path)!r} is a folder, name a file")
    if not file and path.exists() and not path.is_dir():
        raise UsageError(f"output: {str(path)!r} is a file, name a folder")
    if not file and path.is_dir() and any(path.iterdir()) and not (path / "config.json").is_file():
        raise UsageError(f"output: {str(path)!r} holds other files, name another folder")
