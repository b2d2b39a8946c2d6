"""The plan and the exports that a finished run has lost, made again from its mask."""

from pathlib import Path

import torch

from policyprune.config.schema import Config
from policyprune.models.loading import load
from policyprune.pruning.mask_file import load_compensation, load_mask
from policyprune.pruning.prunable import PrunableModel
from policyprune.runs.card import write_card
from policyprune.runs.record import Record
from policyprune.storage.record_file import MASK_FILE, PLAN_FILE
from policyprune.surgery import formats
from policyprune.surgery.plan import Plan, base_of
from policyprune.surgery.plan_file import write_plan
from policyprune.surgery.shrink import shrink


@torch.no_grad()
def repair(record: Record, config: Config, folder: Path) -> None:
    """Write the plan and all exports of the run in `folder` again, and say so in its record."""
    space, mask = load_mask(folder / MASK_FILE)
    compensation = load_compensation(folder / MASK_FILE, space)
    model, tokenizer = load(config.model, config.task)
    base = base_of(model, config.model.source, config.model.revision, config.task.name)
    smaller = shrink(PrunableModel.over(model, space), mask, compensation)
    write_plan(folder / PLAN_FILE, Plan(base, space, mask, compensation))
    record.warn("the exports were made again from the mask, after the numbers were measured")
    settings = formats.Settings.of(config.export)
    for form in config.export.formats:
        formats.write_format(form, smaller, tokenizer, formats.target(form, folder, settings), settings)
    if "hf" in config.export.formats:
        write_card(record, formats.target("hf", folder, settings), base.source)
