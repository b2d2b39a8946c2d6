"""The verb `doctor`: what can be removed from a model, and whether removing it is exact."""

import dataclasses
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from itertools import groupby

import transformers
from tabulate import tabulate
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.config.schema import Config
from policyprune.errors import UsageError
from policyprune.evaluation.fresh_process import reloaded_gaps
from policyprune.evaluation.measures import block_parameters, parameters
from policyprune.models.adapter import Adapter, Block, adapt
from policyprune.models.examples import EXAMPLES, example, miniature, random_model
from policyprune.models.families import family_of
from policyprune.models.library_messages import quiet
from policyprune.models.loading import read_config, structure
from policyprune.models.query_heads import by_query_heads
from policyprune.surgery import equivalence
from policyprune.surgery.equivalence import TOLERANCE, TOLERANCE_BFLOAT16, Probe, probe_of

log = logging.getLogger(__name__)
COLUMNS = ("masked = shrunk", "reloaded", "pruned again", "cache", "bfloat16", "query heads", "hidden")


def examine(config: Config) -> int:
    """Print the units and costs that a model's config says, and check a small random copy; 0 if all is well, else 1."""
    transformers.logging.set_verbosity_error()
    stated = read_config(config.model)
    head = family_of(stated).head
    model = structure(config.model, stated, getattr(transformers, f"AutoModelFor{head}"))
    adapter = adapt(model)
    print(f"{config.model.source}: {stated.model_type}, {type(model).__name__}, {parameters(model):,} parameters\n")
    print(description(model, adapter, config.budget.sequence_length))
    small = random_model(miniature(stated, adapter), head)
    probe = probe_of(small)
    print(f"\nchecked on random weights, a copy with {_size(probe)}:")
    worst = checked({"": probe})[""]
    print(
        tabulate([[column, _verdict(column, worst[column])] for column in COLUMNS if column in worst], tablefmt="plain")
    )
    return 0 if all(_good(column, value) for column, value in worst.items()) else 1


def examine_families() -> int:
    """Print a table of all families and variants, each checked on a tiny random model; 0 if all is well, else 1."""
    transformers.logging.set_verbosity_error()
    quiet()
    probes = {name: probe_of(example(name)) for name in EXAMPLES}
    worst = checked(probes)
    print(table(probes, worst))
    return 0 if all(_good(column, value) for row in worst.values() for column, value in row.items()) else 1


def checked(probes: dict[str, Probe]) -> dict[str, dict[str, float]]:
    """The largest deviations by name and column; one fresh process loads the checkpoints of all of them."""
    worst = {name: gaps(probe) for name, probe in probes.items()}
    finer = {(name, column): other for name, probe in probes.items() for column, other in _other_units(probe).items()}
    jobs = probes | {f"{name} {column}": probe for (name, column), probe in finer.items()}
    try:
        reloaded = reloaded_gaps(jobs)
    except RuntimeError as error:
        log.error("reloaded: %s", str(error).strip().splitlines()[-1])
        reloaded = dict.fromkeys(jobs, float("inf"))
    for name, row in worst.items():
        row["reloaded"] = reloaded[name]
    for name, column in finer:
        worst[name][column] = max(worst[name][column], reloaded[f"{name} {column}"])
    return worst


def _other_units(probe: Probe) -> dict[str, Probe]:
    """The same model with other units than whole KV groups and channels, by column; those that it can lose."""
    other = {"query heads": equivalence.with_query_heads(probe), "hidden": equivalence.with_hidden_units(probe)}
    return {column: found for column, found in other.items() if found is not None}


def table(probes: dict[str, Probe], worst: dict[str, dict[str, float]]) -> str:
    """A Markdown table with a row per family and variant."""
    rows = []
    for name, probe in probes.items():
        attention = probe.adapter.blocks[0]
        unit = "the whole" if attention.together else "heads" if attention.queries == 1 else "groups of heads"
        unit += " or query heads" if "query heads" in worst[name] else ""
        checks = {column: worst[name][column] for column in COLUMNS if column in worst[name]}
        failed = [f"{column} {_verdict(column, value)}" for column, value in checks.items() if not _good(column, value)]
        rows.append([name, type(probe.model).__name__, unit, ", ".join(failed) or "ok"])
        channels = equivalence.with_hidden_units(probe)
        rows[-1] += [
            equivalence.stock_class_when(probe),
            equivalence.hidden_stock_class_when(channels) if channels else "",
        ]
    headers = ["model type", "class", "attention by", "checks", "equal widths", "fewer hidden channels"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def gaps(probe: Probe) -> dict[str, float]:
    """The largest deviation over all masks, by column, in this process; what a family lacks has none.

    `query heads` and `hidden` are those of any check with these as the units.
    """
    half = equivalence.in_bfloat16(probe)
    checks = {
        "masked = shrunk": lambda: equivalence.largest_gap(probe, equivalence.shrunk_gap),
        "pruned again": lambda: equivalence.largest_gap(probe, equivalence.again_gap),
        "bfloat16": lambda: equivalence.largest_gap(half, equivalence.shrunk_gap),
    }
    if probe.adapter.family.head == "CausalLM":
        checks["cache"] = lambda: equivalence.largest_gap(probe, equivalence.cache_gap)
    every = [equivalence.shrunk_gap, equivalence.again_gap, *([equivalence.cache_gap] if "cache" in checks else [])]
    for column, other in _other_units(probe).items():
        checks[column] = partial(_largest, other, every)
    return {column: _attempted(column, check) for column, check in checks.items()}


def _largest(probe: Probe, every: Iterable[Callable[[Probe, Tensor], float]]) -> float:
    return max(equivalence.largest_gap(probe, gap_of) for gap_of in every)


def _attempted(column: str, check: Callable[[], float]) -> float:
    """What a check finds; where a pruned model does not even run, the cause is logged and the deviation is infinite."""
    try:
        return check()
    except (RuntimeError, ValueError, AttributeError) as error:
        log.error("%s: %s", column, str(error).strip().splitlines()[-1])
        return float("inf")


def description(model: PreTrainedModel, adapter: Adapter, length: int) -> str:
    """Units and costs by layer, and what stays dense."""
    rows = []
    for kind in ("attention", "ffn"):
        blocks = [block for block in adapter.blocks if block.kind == kind]
        alike: dict[Block, list[int]] = {}
        for block in blocks:
            alike.setdefault(dataclasses.replace(block, layer=0, path=None, out="", parts=()), []).append(block.layer)
        for block, layers in alike.items():
            costs = [f"{block.params_per_unit:,}", f"{block.macs(length):,}"]
            rows.append([kind, _ranges(layers), block.count, block.width, *costs])
    with suppress(UsageError):
        split = [block for block in by_query_heads(model, adapter).blocks if block.groups]
        for block in {(own.groups, own.decisions): own for own in split}.values():
            layers = [b.layer for b in split if (b.groups, b.decisions) == (block.groups, block.decisions)]
            costs = [f"{block.groups * block.params_per_unit:,}", f"{block.groups * block.macs(length):,}"]
            rows.append(["query heads", _ranges(layers), block.decisions, block.groups * block.width, *costs])
    hidden = adapter.hidden
    if hidden is not None and not hidden.obstacle:
        costs = [f"{hidden.params:,}", f"{length * hidden.macs_per_token:,}"]
        rows.append(["hidden", "all together", hidden.count, 1, *costs])
    headers = ["", "layers", "units each", "features/unit", "parameters/unit", f"MACs/unit, {length} tokens"]
    lines = [tabulate(rows, headers=headers, disable_numparse=True), "\nstays dense:"]
    outside = parameters(model) - block_parameters(model, adapter)
    lines.append(f"  {outside:,} parameters outside the layers (embeddings, vocabulary projection or head, final norm)")
    lines.append(f"  {adapter.fixed_params:,} parameters of norms and output biases in the layers")
    for reason in dict.fromkeys(block.together for block in adapter.blocks if block.together):
        lines.append(f"  attention, unless it goes as a whole: {reason}")
    if hidden is None or hidden.obstacle:
        reason = hidden.obstacle if hidden else "the family's table does not say where they are"
        lines.append(f"  hidden channels: {reason}")
    return "\n".join(lines)


def _size(probe: Probe) -> str:
    attention, ffn = probe.adapter.blocks[:2]
    groups = attention.count * attention.heads
    return (
        f"{len(probe.adapter.layers)} layers, {groups} x {attention.queries} heads of "
        f"{probe.adapter.head_dim}, {ffn.count} channels, hidden size {probe.model.config.hidden_size}, "
        f"{probe.model.config.vocab_size} tokens"
    )


def _good(column: str, value: float) -> bool:
    return value <= (TOLERANCE_BFLOAT16 if column == "bfloat16" else TOLERANCE)


def _verdict(column: str, value: float) -> str:
    return "ok" if _good(column, value) else f"FAILED ({value:.0e})"


def _ranges(numbers: Iterable[int]) -> str:
    """0, 1, 2, 5 as "0-2, 5"."""
    runs = [list(run) for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0][1]}-{run[-1][1]}" if len(run) > 1 else str(run[0][1]) for run in runs)
