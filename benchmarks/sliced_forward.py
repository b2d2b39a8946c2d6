"""When one mask serves a whole batch: sliced against masked and dense forwards, in time and in memory.

    python benchmarks/sliced_forward.py [batch=8] [length=128] [keep=0.5] [repeats=5] [model=smollm2_135m ...]

Times are those of the transformer blocks alone, in turns, the gathering of the weights included; masks keep `keep` of
the units of each block. Then the number of tokens per mask from which slicing pays, and the peak memory of whole
forwards with the loss, each in a process of its own.
"""

import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import hydra
import torch
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.config.composition import register
from policyprune.config.registry import conf_dir
from policyprune.config.validate import validate
from policyprune.evaluation.latency import in_turns, layer_calls, relative, run_layers
from policyprune.models.adapter import Adapter, adapt
from policyprune.models.loading import load
from policyprune.models.sequences import token_losses
from policyprune.pruning.masking import Masking
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import Space, space_of
from policyprune.runs.stages import measured
from policyprune.surgery.shrink import shrink
from policyprune.surgery.sliced import Sliced

KINDS = ("dense inference", "masked", "sliced")
TOKENS = ((1, 1), (1, 4), (1, 16), (1, 64), (2, 128), (8, 128))


def loaded(overrides: list[str]) -> tuple[PreTrainedModel, Adapter, Space]:
    """The configured model and its heads and channels."""
    register()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = validate(hydra.compose("config", overrides))
    model, _ = load(config.model, config.task)
    adapter = adapt(model)
    return model, adapter, space_of(adapter, ("attention", "ffn"))


def kept(space: Space, keep: float) -> Tensor:
    """A random mask (n,) with the same share of every block."""
    mask = torch.zeros(space.n, dtype=torch.bool)
    for number, view in enumerate(space.views(mask).values()):
        order = torch.randperm(len(view), generator=torch.Generator().manual_seed(number))
        view[order[: round(keep * len(view))]] = True
    return mask


def times(model: PreTrainedModel, adapter: Adapter, space: Space, keep: float, batch: int, length: int, repeats: int):
    """Median seconds of the blocks, and relative to the masked ones."""
    mask = kept(space, keep)
    masking, sliced = Masking(adapter, space), Sliced(PrunableModel(model, adapter, space))
    dense = layer_calls(model, adapter, batch, length)
    cut = layer_calls(shrink(PrunableModel(model, adapter, space), mask), adapter, batch, length)
    sliced.set(mask)
    own = layer_calls(sliced.model, adapter, batch, length)

    def masked() -> None:
        with masking.on(model):
            masking.set(mask[None].float().to(model.device))
            run_layers(dense)

    def gathered() -> None:
        sliced.set(mask)
        run_layers(own)

    actions: dict[str, Callable[[], object]] = {
        "dense": partial(run_layers, dense),
        "masked": masked,
        "sliced": gathered,
        "cut once and kept": partial(run_layers, cut),
    }
    seconds = in_turns(actions, repeats, model.device, warm_ups=1)
    ratios = relative(seconds, "masked")
    return {name: (statistics.median(own), ratios[name]) for name, own in seconds.items()}


@torch.no_grad()
def memory(kind: str, model: PreTrainedModel, adapter: Adapter, space: Space, keep: float, batch: int, length: int):
    """Print the peak in MB of forwards with the loss, in this process."""
    ids = torch.randint(model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))
    masking, sliced = Masking(adapter, space), Sliced(PrunableModel(model, adapter, space))
    ids = ids.to(model.device)
    stages: list[dict[str, float]] = []
    with measured(kind, stages):
        for number in range(2):
            mask = kept(space, keep).roll(number)
            if kind == "sliced":
                sliced.set(mask)
                token_losses(sliced.model, ids).mean(-1)
            elif kind == "masked":
                with masking.on(model):
                    masking.set(mask[None].float().to(model.device))
                    token_losses(model, ids).mean(-1)
            else:
                model(input_ids=ids, use_cache=False)
    print(stages[0]["peak_gpu_memory_mb"] or stages[0]["peak_memory_mb"])


def main() -> None:
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    alone = words.pop("memory", None)
    keep, batch, length = float(words.pop("keep", 0.5)), int(words.pop("batch", 8)), int(words.pop("length", 128))
    repeats = int(words.pop("repeats", 5))
    subject = loaded([f"{key}={value}" for key, value in words.items()])
    if alone:
        return memory(alone, *subject, keep, batch, length)
    print(f"{torch.get_num_threads()} threads, {subject[0].device}, {subject[0].dtype}, keep {keep}")
    found = times(*subject, keep, batch, length, repeats)
    print(f"blocks, {batch} x {length} tokens:")
    for name, (seconds, ratio) in found.items():
        print(f"  {name:<20}{1000 * seconds:9.1f} ms   masked / this = {1 / ratio:.2f}")
    print("tokens per mask: masked / sliced")
    for rows, tokens in TOKENS:
        own = times(*subject, keep, rows, tokens, repeats)
        print(f"  {rows * tokens:6d}   {own['masked'][0] / own['sliced'][0]:.2f}")
    peaks: dict[str, float] = {}
    for kind in KINDS:
        done = subprocess.run(
            [sys.executable, __file__, f"memory={kind}", *sys.argv[1:]], capture_output=True, text=True, check=True
        )
        peaks[kind] = float(done.stdout.split()[-1])
        print(f"peak memory, {kind}: {peaks[kind]:.0f} MB, {peaks[kind] / peaks[KINDS[0]]:.2f} of dense inference")
    return None


if __name__ == "__main__":
    main()
