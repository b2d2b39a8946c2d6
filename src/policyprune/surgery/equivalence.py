"""Does a pruned model compute what the masked model computes: in memory, pruned again, with the cache?"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.errors import UsageError
from policyprune.models.adapter import adapt
from policyprune.models.query_heads import QUERY_HEAD
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import HIDDEN, Key, Space
from policyprune.surgery.checkpoint import needs_code
from policyprune.surgery.shrink import shrink

TOLERANCE = 1e-4  # of the largest output, in float32
TOLERANCE_BFLOAT16 = 5e-2
UNITS = ("attention", "ffn")
WITH_QUERY_HEADS: tuple[str, ...] = (QUERY_HEAD, "ffn")


@dataclass(frozen=True, eq=False)
class Probe(PrunableModel):
    """A dense model with its units, and token ids (B, T) that it and what becomes of it are compared on."""

    ids: Tensor

    @torch.no_grad()
    def masked_outputs(self, mask: Tensor) -> Tensor:
        """Outputs of the dense model under a mask (n,)."""
        with self.masked(mask) as model:
            return outputs(model, self.ids)


def probe_of(model: PreTrainedModel, units: tuple[str, ...] = UNITS) -> Probe:
    """The model with its units, those of all blocks by default, and two random sequences of 10 tokens."""
    ids = torch.randint(3, model.config.vocab_size, (2, 10), generator=torch.Generator().manual_seed(5))
    prunable = PrunableModel.of(model, units)
    return Probe(model, prunable.adapter, prunable.space, ids)


@torch.no_grad()
def outputs(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits as float32."""
    logits = model(input_ids=ids).logits
    assert isinstance(logits, Tensor)
    return logits.float()


def gap(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected output; inf if anything is not finite."""
    if not bool(actual.isfinite().all()):
        return float("inf")
    return float((actual - expected).abs().max() / expected.abs().max())


def random_mask(space: Space, seed: int = 0, keep: float = 0.6, without: Iterable[Key] = ()) -> Tensor:
    """A mask (n,) over the units by independent decisions, with the named (layer, kind) groups gone as a whole.

    Of query heads any go, as many of each key/value head; in the first layer one of these is gone, too.
    """
    generator = torch.Generator().manual_seed(seed)
    mask = _shuffled(space, seed).expand(torch.rand(space.n, generator=generator) < keep)
    views = space.units.views(mask)
    for group, ranks in zip(space.units.groups, space.ranks, strict=False):
        if ranks and group.layer == 0:
            views[0, group.kind].view(-1, max(ranks) + 1)[-1] = False
    for block in without:
        views[block].zero_()
    return mask


def equal_widths(space: Space, kinds: Sequence[str] = UNITS) -> Tensor:
    """A mask (n,) over the units that keeps half the decisions of each group of these kinds, others in each layer."""
    mask = torch.ones(space.n, dtype=torch.bool)
    for (layer, kind), view in space.views(mask).items():
        if kind in kinds:
            order = torch.randperm(len(view), generator=torch.Generator().manual_seed(layer))
            view[order[: len(view) // 2]] = False
    return _shuffled(space, len(kinds)).expand(mask)


def _shuffled(space: Space, seed: int) -> Space:
    """The space with query heads in any order."""
    return space.ranked(torch.rand(space.units.n, generator=torch.Generator().manual_seed(seed + 1)))


def hidden_mask(count: int, multiple: int) -> Tensor:
    """A mask (count,) that keeps about 0.6 of the hidden channels, rounded down to a multiple."""
    kept = int(0.6 * count) // multiple * multiple or multiple
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:kept]
    return torch.zeros(count, dtype=torch.bool).index_fill(0, chosen, True)


def masks(probe: Probe) -> dict[str, Tensor]:
    """Masks (n,) that a search could end with, by name."""
    if probe.has_hidden_units:
        heads = getattr(probe.model.config, probe.adapter.family.head_count)
        return {
            "any number": hidden_mask(probe.space.n, 1),
            "multiple of the heads": hidden_mask(probe.space.n, heads),
        }
    last = len(probe.adapter.layers) - 1
    middle = last // 2

    def make(*without: Key) -> Tensor:
        return random_mask(probe.space, without=without)

    if probe.has_query_heads:
        few = {"random units": make((middle, "attention")), "equal widths": equal_widths(probe.space)}
        return {**few, "more random units": random_mask(probe.space, seed=2, keep=0.4)}
    return {
        "random units": make(),
        "no attention in a layer": make((middle, "attention")),
        "no FFN in a layer": make((middle, "ffn")),
        "first layer empty": make((0, "attention"), (0, "ffn")),
        "middle layer empty": make((middle, "attention"), (middle, "ffn")),
        "last layer empty": make((last, "attention"), (last, "ffn")),
        "equal widths": equal_widths(probe.space),
    }


def largest_gap(probe: Probe, gap_of: Callable[[Probe, Tensor], float]) -> float:
    """The largest gap over all masks."""
    return max(gap_of(probe, mask) for mask in masks(probe).values())


def shrunk_gap(probe: Probe, mask: Tensor) -> float:
    """Shrunk against masked."""
    return gap(outputs(shrink(probe, mask), probe.ids), probe.masked_outputs(mask))


def again_gap(probe: Probe, mask: Tensor) -> float:
    """Pruned in two steps against masked with both masks."""
    smaller, kinds = shrink(probe, mask), tuple({group.kind for group in probe.space.groups})
    if probe.has_query_heads and any(block.queries > 1 for block in adapt(smaller).blocks):
        kinds = WITH_QUERY_HEADS
    half = probe_of(smaller, kinds)
    second = random_mask(half.space, seed=1, keep=0.7)
    both = mask.clone()
    both[mask] = second
    return gap(outputs(shrink(half, second), probe.ids), probe.masked_outputs(both))


@torch.no_grad()
def cache_gap(probe: Probe, mask: Tensor) -> float:
    """Shrunk, read in two pieces with the key/value cache, against the whole sequence at once."""
    model, ids = shrink(probe, mask), probe.ids
    start = model(ids[:, :7], use_cache=True)
    end = model(ids[:, 7:], past_key_values=start.past_key_values, use_cache=True)
    return gap(torch.cat([start.logits, end.logits], 1).float(), outputs(model, ids))


def in_bfloat16(probe: Probe) -> Probe:
    """The same in bfloat16."""
    half = copy.deepcopy(probe.model).to(torch.bfloat16)  # type: ignore[arg-type]
    return Probe(half, probe.adapter, probe.space, probe.ids)


def with_hidden_units(probe: Probe) -> Probe | None:
    """The same model with its hidden channels as units; None where they cannot be removed."""
    channels = probe.adapter.hidden
    return None if channels is None or channels.obstacle else probe_of(probe.model, (HIDDEN[1],))


def with_query_heads(probe: Probe) -> Probe | None:
    """The same model with its query heads as units, beside the channels; None where they cannot go alone."""
    try:
        return probe_of(probe.model, WITH_QUERY_HEADS)
    except UsageError:
        return None


def hidden_stock_class_when(probe: Probe) -> str:
    """When a model without some hidden channels, the units of `probe`, is one of the stock class."""
    alone = {name: not needs_code(shrink(probe, mask).config) for name, mask in masks(probe).items()}
    if all(alone.values()):
        return "stock class"
    return "stock class in multiples of the heads" if alone["multiple of the heads"] else "modelling file"


def stock_class_when(probe: Probe) -> str:
    """When the pruned model is one of the stock class, without a modelling file of its own."""
    for kinds, words in ((UNITS, "stock class"), (("ffn",), "stock class if all heads stay")):
        smaller = shrink(probe, equal_widths(probe.space, kinds))
        if not needs_code(smaller.config):
            return words
    return "modelling file"
