"""Does a pruned model compute what the masked model computes: in memory, with the cache, saved and loaded again?"""

import copy
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.evaluation.fresh_process import logits_elsewhere
from policyprune.models.adapter import Adapter, adapt
from policyprune.pruning.masking import Masking
from policyprune.pruning.space import HIDDEN, Space, space_of
from policyprune.surgery.checkpoint import auto_class, needs_code, save_checkpoint
from policyprune.surgery.shrink import shrink

TOLERANCE = 1e-4  # of the largest output, in float32
TOLERANCE_BFLOAT16 = 5e-2
UNITS = ("attention", "ffn")


@dataclass(frozen=True)
class Subject:
    """A dense model, its units, and token ids (B, T)."""

    model: PreTrainedModel
    adapter: Adapter
    space: Space
    ids: Tensor

    @torch.no_grad()
    def masked(self, mask: Tensor) -> Tensor:
        """Outputs of the dense model under a mask (n,)."""
        with Masking(self.adapter, self.space).on(self.model) as masking:
            masking.set(mask[None].float())
            return outputs(self.model, self.ids)

    def shrunk(self, mask: Tensor) -> PreTrainedModel:
        """The model without the units where mask (n,) is 0."""
        return shrink(self.model, self.adapter, self.space, mask)


def subject_of(model: PreTrainedModel, units: tuple[str, ...] = UNITS) -> Subject:
    """The model with its units, those of all blocks by default, and two random sequences of 10 tokens."""
    ids = torch.randint(3, model.config.vocab_size, (2, 10), generator=torch.Generator().manual_seed(5))
    adapter = adapt(model)
    return Subject(model, adapter, space_of(adapter, units), ids)


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


def random_mask(space: Space, seed: int = 0, keep: float = 0.6, without: Iterable[tuple[int, str]] = ()) -> Tensor:
    """A mask (n,) of independent units, with the named (layer, kind) groups gone as a whole."""
    mask = torch.rand(space.n, generator=torch.Generator().manual_seed(seed)) < keep
    views = space.views(mask)
    for block in without:
        views[block].zero_()
    return mask


def equal_widths(space: Space, kinds: Iterable[str] = UNITS) -> Tensor:
    """A mask (n,) that keeps half the units of each group of these kinds, other ones in each layer."""
    mask = torch.ones(space.n, dtype=torch.bool)
    for (layer, kind), view in space.views(mask).items():
        if kind in kinds:
            order = torch.randperm(len(view), generator=torch.Generator().manual_seed(layer))
            view[order[: len(view) // 2]] = False
    return mask


def hidden_mask(count: int, multiple: int) -> Tensor:
    """A mask (count,) that keeps about 0.6 of the hidden channels, rounded down to a multiple."""
    kept = int(0.6 * count) // multiple * multiple or multiple
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:kept]
    return torch.zeros(count, dtype=torch.bool).index_fill(0, chosen, True)


def masks(subject: Subject) -> dict[str, Tensor]:
    """Ends that a search could come to, by name."""
    if HIDDEN in subject.space.views(torch.ones(subject.space.n)):
        heads = getattr(subject.model.config, subject.adapter.family.head_count)
        return {
            "any number": hidden_mask(subject.space.n, 1),
            "multiple of the heads": hidden_mask(subject.space.n, heads),
        }
    last = len(subject.adapter.layers) - 1
    middle = last // 2

    def make(*without: tuple[int, str]) -> Tensor:
        return random_mask(subject.space, without=without)

    return {
        "random units": make(),
        "no attention in a layer": make((middle, "attention")),
        "no FFN in a layer": make((middle, "ffn")),
        "first layer empty": make((0, "attention"), (0, "ffn")),
        "middle layer empty": make((middle, "attention"), (middle, "ffn")),
        "last layer empty": make((last, "attention"), (last, "ffn")),
        "equal widths": equal_widths(subject.space),
    }


def worst(subject: Subject, gap_of: Callable[[Subject, Tensor], float]) -> float:
    """The largest gap over all masks."""
    return max(gap_of(subject, mask) for mask in masks(subject).values())


def shrunk_gap(subject: Subject, mask: Tensor) -> float:
    """Shrunk against masked."""
    return gap(outputs(subject.shrunk(mask), subject.ids), subject.masked(mask))


def again_gap(subject: Subject, mask: Tensor) -> float:
    """Pruned in two steps against masked with both masks."""
    half = subject_of(subject.shrunk(mask), tuple({group.kind for group in subject.space.groups}))
    second = random_mask(half.space, seed=1, keep=0.7)
    both = mask.clone()
    both[mask] = second
    return gap(outputs(half.shrunk(second), subject.ids), subject.masked(both))


@torch.no_grad()
def cache_gap(subject: Subject, mask: Tensor) -> float:
    """Shrunk, read in two pieces with the key/value cache, against the whole sequence at once."""
    model, ids = subject.shrunk(mask), subject.ids
    start = model(ids[:, :7], use_cache=True)
    rest = model(ids[:, 7:], past_key_values=start.past_key_values, use_cache=True)
    return gap(torch.cat([start.logits, rest.logits], 1).float(), outputs(model, ids))


def bfloat16(subject: Subject) -> Subject:
    """The same in bfloat16."""
    half = copy.deepcopy(subject.model).to(torch.bfloat16)  # type: ignore[arg-type]
    return Subject(half, subject.adapter, subject.space, subject.ids)


def reloaded_gaps(subjects: Mapping[str, Subject]) -> dict[str, float]:
    """The largest gap over all masks: saved and loaded where policyprune cannot be imported, against masked.

    RuntimeError where a checkpoint does not load.
    """
    expected: dict[Path, tuple[str, Tensor]] = {}
    jobs: dict[Path, tuple[str, Tensor]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, subject) in enumerate(subjects.items()):
            for index, mask in enumerate(masks(subject).values()):
                folder = Path(scratch) / f"model{number}-{index}"
                smaller = subject.shrunk(mask)
                save_checkpoint(smaller, None, subject.adapter, folder)
                jobs[folder] = auto_class(smaller), subject.ids
                expected[folder] = name, subject.masked(mask)
        found = logits_elsewhere(jobs)
    gaps = dict.fromkeys(subjects, 0.0)
    for folder, (name, wanted) in expected.items():
        gaps[name] = max(gaps[name], gap(found[folder], wanted))
    return gaps


def hidden(subject: Subject) -> Subject | None:
    """The same model with its hidden channels as units; None where they cannot be removed."""
    channels = subject.adapter.hidden
    return None if channels is None or channels.obstacle else subject_of(subject.model, (HIDDEN[1],))


def hidden_stock(subject: Subject) -> str:
    """When a model without some hidden channels, the units of `subject`, is one of the stock class."""
    alone = {name: not needs_code(subject.shrunk(mask).config) for name, mask in masks(subject).items()}
    if all(alone.values()):
        return "stock class"
    return "stock class in multiples of the heads" if alone["multiple of the heads"] else "modelling file"


def stock(subject: Subject) -> str:
    """When the pruned model is one of the stock class, without a modelling file of its own."""
    for kinds, words in ((UNITS, "stock class"), (("ffn",), "stock class if all heads stay")):
        smaller = subject.shrunk(equal_widths(subject.space, kinds))
        if not needs_code(smaller.config):
            return words
    return "modelling file"
