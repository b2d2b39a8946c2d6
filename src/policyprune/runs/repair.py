"""What a finished run has lost of its plan and its exports, made again from its mask."""

from collections.abc import Callable
from pathlib import Path

import torch

from policyprune.config.schema import Config
from policyprune.models.adapter import adapt
from policyprune.models.loading import load
from policyprune.pruning.mask_file import MASK_FILE, load_compensation, load_mask
from policyprune.pruning.prunable import PrunableModel
from policyprune.runs.card import write_card
from policyprune.runs.record import Record
from policyprune.surgery import formats
from policyprune.surgery.plan import Plan, base_of
from policyprune.surgery.plan_file import PLAN_FILE, write_plan
from policyprune.surgery.shrink import shrink


def mender(config: Config, folder: Path, settings: formats.Settings) -> Callable[[Record], None]:
    """`mend` of `finished_before` for a run in `folder`."""

    @torch.no_grad()
    def mend(record: Record) -> None:
        space, mask = load_mask(folder / MASK_FILE)
        compensation = load_compensation(folder / MASK_FILE, space)
        model, tokenizer = load(config.model, config.task)
        base = base_of(model, config.model.source, config.model.revision, config.task.name)
        smaller = shrink(PrunableModel(model, adapt(model), space), mask, compensation)
        write_plan(folder / PLAN_FILE, Plan(base, space, mask, compensation))
        record.warn("the exports were made again from the mask, after the numbers were measured")
        for form in config.export.formats:
            formats.write_format(form, smaller, tokenizer, formats.target(form, folder, settings), settings)
        if "hf" in config.export.formats:
            write_card(record, formats.target("hf", folder, settings), base.source)

    return mend
