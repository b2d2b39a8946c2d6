"""A run or a checkpoint becomes files for other tools; a dense model becomes what a plan says."""

import logging
import os
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.config.output_folders import check_output
from policyprune.config.schema import Applying, Exporting, Model
from policyprune.errors import UsageError
from policyprune.models.loading import load_as, skeleton_as
from policyprune.runs.card import card, write_card
from policyprune.runs.record import Record, read_record
from policyprune.storage.files import write_file, write_whole
from policyprune.storage.record_file import MASK_FILE, PLAN_FILE
from policyprune.surgery import formats
from policyprune.surgery.checkpoint import auto_class
from policyprune.surgery.plan import Plan, check_base
from policyprune.surgery.plan_file import read_plan

log = logging.getLogger(__name__)
FIRST_BYTES = {"gguf": re.compile(rb"GGUF"), "plan": re.compile(rb'\s*\{\s*"format": "policyprune-plan-')}
SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".jinja", ".py", ".md", ".onnx", ".data")  # of exports
LONGEST = 200  # bytes of a name; while a file is written, its name is longer
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def export(config: Exporting) -> Path:
    """Write one format and return where it is; a run that wrote no checkpoint is made again from its plan."""
    settings = formats.Settings(config.max_shard_size, config.dtype or "f16")
    path = _target(config, settings)
    if config.format == "plan":
        return _copy_plan(config, path)
    check_free(path, config.format, config.model.source)
    run = Path(config.run) if config.run else None
    on_card = _on_card(run) if run is not None and config.format == "hf" else None
    plan = _plan(run) if run is not None and not (run / "checkpoint").is_dir() else None
    dense = _planned(config.model, plan) if plan else config.model
    empty = skeleton_as(dense, head_class(plan))
    if plan:
        check_base(plan, empty)
    formats.check_formats([config.format], empty, settings)
    model, tokenizer = load(dense, auto_class(empty), plan)
    if config.format == "hf" and config.dtype is not None:
        model = model.to(DTYPES[config.dtype])  # type: ignore[arg-type]
    formats.write_format(config.format, model, tokenizer, path, settings)
    if on_card is not None:
        record, source = on_card
        write_card(record, path, source)
    print(path)
    return path


def load(config: Model, kind: str, plan: Plan | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model of the class `kind` of transformers and its tokenizer, pruned where there is a plan."""
    model, tokenizer = load_as(config, getattr(transformers, kind))
    return (plan.apply(model) if plan else model), tokenizer


def _on_card(run: Path) -> tuple[Record, str] | None:
    """The record of a run and the source of its dense model, for the model card. None for a run that made no model.

    UsageError, before anything is written, where no card can be made from them.
    """
    record = read_record(run)
    if record is None or not (record.recovery or "budget" in record.config):
        return None
    if "budget" in record.config:
        source = read_plan(run / PLAN_FILE).base.source
    else:
        source = record.config["teacher"] or record.config["model"]["source"]
    try:
        card(record, source, "LlamaForCausalLM", False)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UsageError(
            f"source: {str(run)!r} has a record.json that no model card can be made from ({type(error).__name__}: "
            f"{error}); {str(run / 'checkpoint')!r} is exported without one"
        ) from error
    return record, source


def _plan(run: Path) -> Plan:
    """What a run without a checkpoint is made again from; UsageError where that is not all that it was."""
    record = read_record(run)
    if record is not None and record.recovery:
        raise UsageError(
            f"source: {str(run)!r} has no checkpoint, and its plan has not the weights that "
            f"recovery={record.recovery['method']} trained; run it with export=hf"
        )
    return read_plan(run / PLAN_FILE)


def _planned(config: Model, plan: Plan) -> Model:
    """The dense model of a plan, held as the run held it."""
    return replace(config, source=plan.base.source, revision=plan.base.revision, dtype=plan.base.dtype)


def head_class(plan: Plan | None) -> Any:
    """The class of transformers that a plan was made for; None without a plan."""
    return getattr(transformers, plan.base.head) if plan else None


def _target(config: Exporting, settings: formats.Settings) -> Path:
    """`output`, otherwise a name in the run's folder, beside the checkpoint, or here for a model of the hub."""
    if config.output:
        return Path(config.output)
    suffix = f"-{config.dtype}" if config.format == "hf" and config.dtype else ""
    if config.run is not None:
        run = Path(config.run)
        path = run / PLAN_FILE if config.format == "plan" else formats.target(config.format, run, settings)
        return path.with_name(path.name + suffix)
    source = Path(config.model.source)
    folder = source.parent if source.exists() else Path()
    ending = f"-{settings.gguf_dtype}.gguf" if config.format == "gguf" else f"-{config.format}{suffix}"
    return folder / (config.model.name + ending)


def _copy_plan(config: Exporting, path: Path) -> Path:
    """Copy a plan, and the tensors of its compensation beside it."""
    assert config.run is not None
    source = Path(config.run) / PLAN_FILE
    compensation = read_plan(source).compensation
    record = read_record(source.parent)
    if record is not None and record.recovery:
        log.warning(
            "the plan tells what was pruned, not the weights that recovery=%s trained", record.recovery["method"]
        )
    if path != source:
        check_free(path, "plan", str(source))
        has_tensors = compensation is not None and (compensation.weights or compensation.biases)
        if has_tensors and path.parent.resolve() != source.parent.resolve():
            if (path.parent / MASK_FILE).exists():
                raise UsageError(
                    f"output: {str(path)!r} needs its {MASK_FILE} beside it, where there is one; name another folder"
                )
            with write_file(path.parent / MASK_FILE) as scratch:
                shutil.copyfile(source.with_name(MASK_FILE), scratch)
        write_whole(path, source.read_bytes())
    print(path)
    return path


def check_free(path: Path, form: str, source: str) -> None:
    """UsageError where an export would take the place of something else, or cannot be written at all."""
    is_file = form in FIRST_BYTES
    if len(os.fsencode(path.name)) > LONGEST:
        raise UsageError(f"output: {str(path)!r} has a name of more than {LONGEST} bytes, use a shorter one")
    if is_file and path.is_dir():
        raise UsageError(f"output: {str(path)!r} is a folder, name a file")
    check_output(str(path), folder=not is_file)
    try:  # a full disk or the kernel's own file system is seen only by writing
        with tempfile.TemporaryDirectory(dir=next(folder for folder in path.absolute().parents if folder.exists())):
            pass
    except OSError as error:
        raise UsageError(f"output: {str(path)!r} cannot be written: {error.strerror}") from error
    if is_file:
        if path.exists() and not _begins(path, FIRST_BYTES[form]):
            raise UsageError(f"output: {str(path)!r} is another file, name a new one")
    elif path.is_dir():
        names = {file.name for file in path.iterdir()}
        foreign = [file.name for file in path.iterdir() if file.is_dir() or file.suffix not in SUFFIXES]
        if names and ("config.json" not in names or foreign):
            raise UsageError(f"output: {str(path)!r} holds other files, name another folder")
    if Path(source).exists() and path.resolve() in (Path(source).resolve(), *Path(source).resolve().parents):
        raise UsageError(f"output: {str(path)!r} is or holds what is exported, name another place")


def _begins(path: Path, first_bytes: re.Pattern[bytes]) -> bool:
    with path.open("rb") as file:
        return first_bytes.match(file.read(200)) is not None


def apply(config: Applying) -> Path:
    """Write the checkpoint that a plan makes of its dense model, and return where it is."""
    plan = read_plan(Path(config.plan))
    path = Path(config.output) if config.output else Path(config.plan).parent / "applied"
    check_free(path, "hf", config.model.source)
    check_base(plan, skeleton_as(config.model, head_class(plan)))
    model, tokenizer = load(config.model, plan.base.head, plan)
    formats.write_format("hf", model, tokenizer, path, formats.Settings(config.max_shard_size, "f16"))
    print(path)
    return path
