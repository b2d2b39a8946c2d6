"""Before the search: everything that a run does after it, once, on two layers and an example.

What would fail after hours fails now, in one line. Numbers, random numbers and files of the run stay as they were.
"""

import contextlib
import io
import logging
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.config.schema import Calibrated, Config, Trained
from policyprune.errors import RunError, UsageError
from policyprune.evaluation.latency import latencies
from policyprune.evaluation.measures import size
from policyprune.evaluation.quality import Quality
from policyprune.evaluation.zero_shot import generators_restored
from policyprune.models.adapter import Adapter
from policyprune.models.device import in_search_dtype
from policyprune.pruning.prunable import PrunableModel
from policyprune.recovery.material import Material
from policyprune.recovery.recover import Surroundings, recover
from policyprune.storage.files import SCRATCH_PREFIX, SCRATCH_SUFFIX, disk_trouble
from policyprune.surgery import formats
from policyprune.surgery.shrink import shrink
from policyprune.tasks import CalibrationData
from policyprune.tuning.fit import fit

log = logging.getLogger(__name__)

SEQUENCES = 4  # that a tuning is tried with, and twice as many in all


@dataclass(frozen=True)
class FirstOf:
    """The first `count` calibration sequences of a task."""

    task: CalibrationData
    count: int

    @property
    def lengths(self) -> Tensor:
        """Tokens of each of them."""
        return self.task.lengths[: self.count]

    def inputs(self, rows: Tensor) -> dict[str, Tensor]:
        """Those of the task: rows (B,)."""
        return self.task.inputs(rows)

    def loss(self, model: PreTrainedModel, rows: Tensor) -> Tensor:
        """That of the task: rows (B,) -> (B,)."""
        return self.task.loss(model, rows)


@dataclass(frozen=True)
class Data:
    """What a run reads: for calibration, to measure models, and to train on where it does."""

    task: CalibrationData
    quality: Quality
    material: Material | None


@torch.no_grad()
def rehearse(
    config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Data, folder: Path
) -> None:
    """Loss, tuning, shrinking, recovery, export, evaluation, in this order. UsageError naming the part that fails."""
    began = time.perf_counter()
    task, quality = data.task, data.quality
    first = FirstOf(task, 2 * SEQUENCES)
    with generators_restored(), contextlib.redirect_stderr(io.StringIO()):  # no bars
        with tried("the loss of the dense model"):
            rows = torch.arange(min(2, len(first.lengths)))
            if not bool(task.loss(model, rows).isfinite().all()):
                raise UsageError("model.source: the loss of the dense model is not a number, its weights are broken")
        with tried("pruning"):
            small = PrunableModel.of(few_layers(model), config.granularity.units)
            mask = half(small)
            pruned = shrink(small, mask)
        if isinstance(config.tuning, Calibrated):
            with tried(f"tuning={config.tuning.name}"):
                quick = small.on(in_search_dtype(small.model, config.model.search_dtype))
                short = replace(config.tuning, sequences=SEQUENCES)
                fitted = fit(small, mask, first, short, quick)
                pruned = shrink(small, fitted.mask, fitted.compensation)
        if data.material is not None:
            with tried(f"recovery={config.recovery.name}"):
                pruned = _recover(config, pruned, small.model, data.material, folder)
        _export(config, pruned, tokenizer, folder)
        rehearse_evaluation(quality, model)
        with tried("evaluation.latency"):
            size(pruned, config.budget.sequence_length)
            options = config.evaluation.latency
            list(latencies({"pruned": pruned}, replace(options, repeats=min(1, options.repeats))))
    log.info("ready in %.1f s: all that follows the search was tried", time.perf_counter() - began)


def rehearse_evaluation(quality: Quality, model: PreTrainedModel) -> None:
    """Measure the model on an example or two. UsageError where that fails."""
    with generators_restored(), contextlib.redirect_stderr(io.StringIO()), tried("evaluation"):
        quality.sample().of("rehearsal", model)


def few_layers(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its first two layers, and the first ones with attention and an FFN; it shares their weights."""
    prunable = PrunableModel.of(model)
    kept = {0, 1, *(_first(prunable.adapter, kind) for kind in ("attention", "ffn"))}
    mask = torch.ones(prunable.units.n, dtype=torch.bool)
    for (layer, _), view in prunable.units.views(mask).items():
        view.fill_(layer in kept)
    return shrink(prunable, mask)


def half(prunable: PrunableModel) -> Tensor:
    """A mask (n,) that keeps the first half of each group, a unit at least."""
    mask = torch.zeros(prunable.units.n, dtype=torch.bool)
    for key, view in prunable.units.views(mask).items():
        groups = prunable.blocks[key].groups if key in prunable.blocks else 0
        for of_group in view.view(groups or 1, -1):
            of_group[: (len(of_group) + 1) // 2] = True
    return mask


@contextlib.contextmanager
def tried(what: str) -> Iterator[None]:
    """What fails inside is a UsageError in one line; troubles of the disk, and what is one line already, stay."""
    try:
        yield
    except (UsageError, RunError):
        raise
    except Exception as error:
        if disk_trouble(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{what} would fail after the search: {reason}") from error


def _first(adapter: Adapter, kind: str) -> int:
    return next((block.layer for block in adapter.blocks if block.kind == kind and block.count), 0)


def _recover(
    config: Config, model: PreTrainedModel, dense: PreTrainedModel, material: Material, folder: Path
) -> PreTrainedModel:
    """One step on one item."""
    assert isinstance(config.recovery, Trained)
    short = replace(config.recovery, steps=1, tokens=None, seconds=None, batch_size=1, accumulate=1, evaluations=1)
    with tempfile.TemporaryDirectory(
        prefix=f"{SCRATCH_PREFIX}rehearsal-", suffix=SCRATCH_SUFFIX, dir=folder
    ) as scratch:
        around = Surroundings(
            teacher=dense if short.needs_teacher else None,
            folder=Path(scratch),
            keep=config.budget.keep,
            seed=config.seed,
            report=lambda values, step: None,
        )
        return recover(model, short, replace(material, held_out=material.held_out[:1]), around).model


def _export(config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    settings = formats.Settings.of(config.export)
    with tempfile.TemporaryDirectory(
        prefix=f"{SCRATCH_PREFIX}rehearsal-", suffix=SCRATCH_SUFFIX, dir=folder
    ) as scratch:
        for form in config.export.formats:
            with tried(f"export={form}"):
                formats.write_format(form, model, tokenizer, formats.target(form, Path(scratch), settings), settings)
