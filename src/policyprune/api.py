"""The Python API: prune a transformers model in memory, measure it, save it. The command line uses the same core.

    import policyprune as pp

    result = pp.prune(model, texts, tokenizer, keep=0.8)
    pp.evaluate(result.model, other_texts, tokenizer)
    result.save("smaller", tokenizer)

No config files, no run folder. A wrong value raises `UsageError`, in one line.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.config.fields import SEEDS, check
from policyprune.config.presets import compose, configured, granularity_of, text_of
from policyprune.config.python_names import in_python
from policyprune.config.schema import (
    Budget,
    Calibration,
    Classification,
    Config,
    Examples,
    Granularity,
    Importance,
    LanguageModeling,
    Optimizer,
    Task,
    Text,
    Tuning,
)
from policyprune.errors import UsageError
from policyprune.evaluation.measures import size
from policyprune.evaluation.sequence_losses import EvaluationResult, measure
from policyprune.pruning.compensation import Compensation
from policyprune.pruning.mask_file import keep_rates
from policyprune.pruning.prunable import PrunableModel as Prunable
from policyprune.search.in_memory import at_rest, made_usable, search
from policyprune.search.result import PruningResult, Report
from policyprune.surgery.plan import Plan, base_of
from policyprune.surgery.plan_file import read_plan
from policyprune.surgery.shrink import shrink
from policyprune.tasks.in_memory import Cutting, Data, in_memory, text_task
from policyprune.tasks.packing import Sequences
from policyprune.tasks.task import CalibrationData

if TYPE_CHECKING:
    from typing_extensions import Unpack

LENGTH = 128  # tokens of a sequence that is cut from texts
IN_MEMORY = "in memory"  # where models and data come from that have no name


class PrunableModel(Prunable):
    """A transformers model and the units that may go.

    A mask (n,) is over `units`: 1 keeps a head or a channel, 0 takes it out. `masked(mask)` is a context in which the
    model computes as if the others were gone, `shrunk(mask)` a smaller model that computes the same, to rounding.
    """

    granularity: Granularity

    @in_python({"granularity": "units", "granularity.units": "units", "granularity.spared": "spared"})
    def __init__(
        self,
        model: PreTrainedModel,
        units: str | Sequence[str] | Granularity = "head_channel",
        spared: Sequence[float] = (0.0, 0.0),
    ) -> None:
        """`units`: a `granularity` of the command line (`head_channel`, `channel`, `layer`, ...), or kinds of units
        (`["attention", "ffn"]`). `spared`: the shares of the first and of the last layers that stay whole.

        UsageError for a family without a table, and for units that this model cannot lose.
        """
        _check_model(model)
        granularity = granularity_of(units, spared)
        made = Prunable.of(model, granularity.units, granularity.spared)
        super().__init__(model, made.adapter, made.space)
        object.__setattr__(self, "granularity", granularity)

    @contextmanager
    def masked(self, mask: Tensor) -> Iterator[PreTrainedModel]:
        """A context in which the model computes under a mask (n,), or (B, n), one for each sequence, of 0 and 1."""
        self._check_mask(mask)
        with super().masked(mask) as model:
            yield model

    def shrunk(self, mask: Tensor, compensation: Compensation | None = None) -> PreTrainedModel:
        """The model without the units where mask (n,) is 0. It shares with this one the weights that are not cut."""
        self._check_mask(mask)
        return shrink(self, mask, compensation)

    def _check_mask(self, mask: Tensor) -> None:
        if not isinstance(mask, Tensor) or mask.shape[-1:] != (self.units.n,):
            given = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise UsageError(f"mask: {given}, but this model has a mask of shape ({self.units.n},)")
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise UsageError("mask: it has values between 0 and 1, each unit is kept (1) or goes (0)")


class Choices(TypedDict, total=False):
    """What `prune` can be told beside the model, the data, how much stays and the method."""

    budget: str | Budget  # what `keep` counts: "rate" (heads and channels each), "params", "flops", "latency"
    scope: str  # "global", "per_layer" (the same share in each layer) or "uniform" (the same widths)
    granularity: str | Sequence[str] | Granularity  # the units of PrunableModel, for a model that is none yet
    optimizer: str | Optimizer  # in place of the method's, such as pp.PolicyGradient(steps=200)
    importance: str | Importance
    tuning: str | Tuning
    length: int  # tokens of a calibration sequence that is cut from texts, 128 where it is not said
    bos: bool  # whether BOS leads each of them, measured on the model where it is not said
    seed: int  # of all random numbers, 0 where it is not said


@in_python({"data": "calibration", "data.loss": "calibration.loss"})
def prune(
    model: PreTrainedModel | PrunableModel,
    calibration: Data | Text,
    tokenizer: PreTrainedTokenizerBase | None = None,
    keep: float = 0.8,
    method: str | None = None,
    **choices: Unpack[Choices],
) -> PruningResult:
    """Take out all but the share `keep` of a model's heads and channels. The dense model stays as it is.

    `calibration`: texts, or token ids as lists or as a tensor (N, L); or labelled examples, as a dict of tensors or as
    batches of a data loader, with the model's own loss; or a task of your own, with `lengths` (N,), `inputs(rows)` and
    `loss(model, rows) -> (B,)`; or a `pp.Chat`, `pp.Mixture` or `pp.Generated`, which say what is read. Texts need a
    `tokenizer`; they are cut into sequences, which `seed` shuffles. `method`: one of the command line's (`ours`,
    `ours_forward`, `flap`, `llm_pruner`, ...), `ours` where none is said. For the other choices see `Choices`. The same
    data, choices and seed give the same mask, here and on the command line.

    UsageError, in one line, for a wrong value; RunError where too many losses are no numbers. A bar shows the loss and
    the keep rate of the search.
    """
    unknown = sorted(set(choices) - set(Choices.__annotations__))
    if unknown:
        raise UsageError(f"{unknown[0]}: unknown, the choices are {', '.join(Choices.__annotations__)}")
    dense = model.model if isinstance(model, PrunableModel) else model
    check_arguments(dense, tokenizer, choices.get("length", LENGTH), choices.get("bos"), choices.get("seed", 0))
    with at_rest(dense):
        began = time.perf_counter()
        if isinstance(calibration, Text):
            data: CalibrationData = _read(calibration, dense, tokenizer, choices)
        else:
            data = _calibration(calibration, dense, tokenizer, choices)
        config = _config(model, data, keep, method, choices)
        prunable = model if isinstance(model, PrunableModel) else PrunableModel(dense, config.granularity)
        base = base_of(dense, config.model.source, None, config.task.name)
        steps: list[dict[str, float]] = []
        pruned = search(prunable, data, config, steps)
        seconds = time.perf_counter() - began
    smaller = made_usable(pruned.model, dense)
    report = Report(
        config=config,
        sequences=len(data.lengths),
        tokens=int(data.lengths.sum()),
        protocol=data.protocol if isinstance(data, Sequences) else {},
        forwards=pruned.found.forwards,
        backwards=pruned.found.backwards,
        seconds=seconds,
        steps=steps,
        keep_rates=keep_rates(pruned.mask, prunable.units),
        tuning=pruned.tuning,
        dense=_sizes(dense, config),
        smaller=_sizes(smaller, config),
    )
    return PruningResult(
        model=smaller,
        mask=pruned.mask.bool().cpu(),
        report=report,
        prunable=prunable,
        compensation=pruned.compensation,
        probabilities=pruned.scores.space.expand(pruned.found.probabilities),
        base=base,
    )


@in_python()
def evaluate(
    model: PreTrainedModel,
    data: Data | Text,
    tokenizer: PreTrainedTokenizerBase | None = None,
    length: int = LENGTH,
    bos: bool | None = None,
    batch_tokens: int = 2048,
) -> EvaluationResult:
    """Perplexity on texts or token ids; loss and accuracy on labelled examples. `data` is as for `prune`.

    Of a `pp.Chat`, `pp.Mixture` or `pp.Generated` it is the test text. Texts are cut into windows of `length` tokens.
    `bos`: whether BOS leads each of them. Where it is not said, it does if that lowers this model's loss by more than
    0.1 nats; say it where models are compared (`result.report.protocol["bos"]`). About `batch_tokens` tokens go through
    the model at a time.
    """
    check_arguments(model, tokenizer, length, bos)
    with at_rest(model):
        if isinstance(data, Text):
            config = text_of(data, 0)
            only_test = replace(config, calibration=replace(config.calibration, count=0))
            task = text_task(only_test, tokenizer, model, bos)
            return measure(model, Sequences(task.windows(length, None), task.protocol), batch_tokens)
        return measure(model, in_memory(data, model, Cutting(tokenizer, length, bos)), batch_tokens)


@in_python({"plan": "path"})
def load_plan(path: str | Path) -> Plan:
    """Read a `plan.json`; `load_plan(path).apply(model)` makes the smaller model from the dense one.

    A plan with new weights or biases needs the mask file beside it. UsageError for anything but a whole plan.
    """
    return read_plan(Path(path))


def check_arguments(model: object, tokenizer: object, length: object, bos: object, seed: object = 0) -> None:
    """UsageError for an argument of another type, or out of its range."""
    _check_model(model)
    if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UsageError(f"tokenizer: {tokenizer!r} is no tokenizer, load it by AutoTokenizer.from_pretrained")
    for name, number in (("length", length), ("seed", seed)):
        if not isinstance(number, int) or isinstance(number, bool):
            raise UsageError(f"{name}: {number!r} is no whole number")
    check("length", length, {"bounds": {"at least": 2}})
    check("seed", seed, {"bounds": {"at least": 0, "at most": SEEDS}})
    if not isinstance(bos, bool | None):
        raise UsageError(f"bos: {bos!r} is not one of True, False, None")


def _check_model(model: object) -> None:
    if not isinstance(model, PreTrainedModel):
        shown = repr(model) if isinstance(model, str) else type(model).__name__
        raise UsageError(f"model: {shown} is no transformers model, load it by from_pretrained")


def _read(
    task: Text, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, choices: Choices
) -> CalibrationData:
    """A text task as the command line reads it, which says itself how it is cut."""
    for name, key in (("length", "calibration=pp.Calibration(length=...)"), ("bos", "bos")):
        if name in choices:
            raise UsageError(f"{name}: a {type(task).__name__} says it itself, by its {key}")
    return text_task(text_of(task, choices.get("seed", 0)), tokenizer, model)


def _calibration(
    data: Data, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, choices: Choices
) -> CalibrationData:
    """The data as a task; sequences that were cut here are shuffled by the seed."""
    task = in_memory(data, model, Cutting(tokenizer, choices.get("length", LENGTH), choices.get("bos")))
    if isinstance(task, Sequences) and not isinstance(data, Tensor | Sequences):
        order = torch.randperm(len(task.ids), generator=torch.Generator().manual_seed(choices.get("seed", 0)))
        task = replace(task, ids=task.ids[order])
    return task


def _config(
    model: PreTrainedModel | PrunableModel, data: CalibrationData, keep: float, method: str | None, choices: Choices
) -> Config:
    """The config of the same run on the command line, with its checks."""
    granularity = choices.get("granularity")
    if isinstance(model, PrunableModel):
        if granularity is not None:
            raise UsageError("granularity: the PrunableModel has one, give its model instead")
        granularity = model.granularity
    elif granularity is not None and not isinstance(granularity, str):
        granularity = granularity_of(granularity)
    groups = {group: choices.get(group) for group in ("budget", "importance", "optimizer", "tuning")}
    parts = compose({"method": method, "granularity": granularity, **groups})
    if isinstance(groups["budget"], Budget) and groups["budget"].keep not in (keep, Budget.keep):
        raise UsageError(f"keep: {keep:g}, but the budget says {groups['budget'].keep:g}; say it as keep= alone")
    parts["budget"] = replace(parts["budget"], keep=keep, scope=choices.get("scope", parts["budget"].scope))
    count, seed = len(data.lengths), choices.get("seed", 0)
    if not isinstance(groups["importance"], Importance):  # the default number of sequences, or all where there are less
        wanted = parts["importance"].sequences
        parts["importance"] = replace(parts["importance"], sequences=None if wanted is None else min(wanted, count))
    if isinstance(data, Sequences):
        shape = Calibration(count=count, length=data.ids.shape[1], seed=seed)
        task: Task = LanguageModeling(name="texts", files=[IN_MEMORY], calibration=shape)
    else:
        task = Classification(name="examples", text_columns=[IN_MEMORY], calibration=Examples(count=count, seed=seed))
    dense = model.model if isinstance(model, PrunableModel) else model
    return configured(parts, dense.config.name_or_path or IN_MEMORY, task, method, seed)


def _sizes(model: PreTrainedModel, config: Config) -> dict[str, float]:
    return {row.metric: row.value or 0 for row in size(model, config.budget.sequence_length)}
