"""The Python API: train a smaller model back in memory."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.api import check_arguments
from policyprune.config.output_folders import checkpoint_folder
from policyprune.config.presets import recovery_of, text_of
from policyprune.config.python_names import in_python
from policyprune.config.schema import Generated, Recovery, Text
from policyprune.errors import UsageError
from policyprune.evaluation.zero_shot import generators_restored
from policyprune.models.adapter import adapt
from policyprune.models.library_messages import silenced
from policyprune.recovery.in_memory import material_in_memory
from policyprune.recovery.material import material_of
from policyprune.recovery.recover import Surroundings
from policyprune.recovery.recover import recover as train
from policyprune.search.in_memory import at_rest
from policyprune.search.result import PruningResult
from policyprune.surgery.checkpoint import save_checkpoint
from policyprune.surgery.shrink import remaining_layers
from policyprune.tasks.in_memory import Cutting, Data, in_memory, text_task


@dataclass(frozen=True)
class RecoveryResult:
    """The recovered model, ready for use, with weights of its own, and what a record of a run says of it: `report` has
    the outcome, steps, tokens, seconds, the held-out loss before and after, and its curve."""

    model: PreTrainedModel
    report: dict[str, Any]

    @in_python({"output": "folder"})
    def save(
        self, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None, max_shard_size: str = "5GB"
    ) -> None:
        """Write a checkpoint that `from_pretrained` loads. UsageError for a folder that holds other files."""
        path = checkpoint_folder(folder)
        with silenced():
            save_checkpoint(self.model, tokenizer, adapt(self.model), path, max_shard_size)


@in_python({"teacher": "dense"})
def recover(
    model: PreTrainedModel | PruningResult,
    data: Data | Text,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dense: PreTrainedModel | None = None,
    recovery: str | Recovery = "distill",
    seed: int = 0,
) -> RecoveryResult:
    """Train a smaller model back on `data`, as for `prune`; the last eighth of it, at most, is held out to judge by.

    `model`: a `PruningResult`, which knows its dense model, or any model of a known family; it stays as it is.
    `recovery`: `"distill"`, `"finetune"`, `"lora"`, or options such as `pp.Distill(seconds=600)`. What returns is never
    worse on what was held out. UsageError, in one line, for a wrong value.
    """
    options = recovery_of(recovery)
    pruned = model if isinstance(model, PruningResult) else None
    smaller = model.model if isinstance(model, PruningResult) else model
    teacher = dense if dense is not None or pruned is None else pruned.prunable.model
    check_arguments(smaller, tokenizer, options.length, None, seed)
    if teacher is not None and not isinstance(teacher, PreTrainedModel):
        raise UsageError(f"dense: {teacher!r} is no transformers model, load it by from_pretrained")
    if options.needs_teacher and teacher is None:
        raise UsageError(f"dense: recovery={options.name} needs the dense model, give it, or use recovery=finetune")
    adapt(smaller)
    bos = pruned.report.protocol.get("bos") if pruned is not None and tokenizer is not None else None
    with (
        at_rest(smaller),
        at_rest(smaller if teacher is None else teacher),
        generators_restored(),
        tempfile.TemporaryDirectory() as folder,
    ):
        if isinstance(data, Text):
            if isinstance(data, Generated) and teacher is None:
                raise UsageError("dense: text that the dense model writes takes the dense model, give it")
            config = text_of(data, seed)
            if not isinstance(config, Generated):  # whose text is written for its calibration
                config = replace(config, calibration=replace(config.calibration, count=0))
            task = text_task(config, tokenizer, smaller if teacher is None else teacher, bos)
            assert tokenizer is not None  # else it was refused
            material = material_of(options, config, task, tokenizer, smaller)
        else:
            cutting = Cutting(tokenizer, options.length, bos)
            material = material_in_memory(in_memory(data, smaller, cutting), options, seed)
        around = Surroundings(
            teacher=teacher if options.needs_teacher else None,
            folder=Path(folder),
            keep=pruned.report.config.budget.keep if pruned is not None else 1.0,
            seed=seed,
            report=lambda values, step: None,
            layers=None if pruned is None else remaining_layers(pruned.prunable, pruned.mask, pruned.compensation),
        )
        found = train(smaller, options, material, around)
    return RecoveryResult(found.model, found.facts)
