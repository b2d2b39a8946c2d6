"""Models of random weights in the shapes of published ones, made on the device, and a clock that waits for it.

Time and memory do not depend on what the weights are.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights

from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import Key
from policyprune.search.prune import BATCH
from policyprune.tasks.packing import Sequences
from policyprune.tasks.task import by_length

KEEP = 0.5  # of every block, where a part has one rate
Result = dict[str, Any]

SHAPES = {
    "llama2_7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "vocab_size": 32000,
    },
    "llama2_13b": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_attention_heads": 40,
        "num_hidden_layers": 40,
        "vocab_size": 32000,
    },
    "llama3_8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": 32,
        "vocab_size": 128256,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 4,
        "vocab_size": 256,
    },
}


def made(name: str, device: torch.device, length: int, layers: int | None = None) -> PrunableModel:
    """A model in bfloat16 with its heads and channels, of the shape's number of `layers` or another one."""
    shape = SHAPES[name] if layers is None else SHAPES[name] | {"num_hidden_layers": layers}
    config = AutoConfig.for_model("llama", max_position_embeddings=max(4096, length), **shape)
    with torch.device(device), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # of a norm
                parameter.fill_(1)
            else:
                parameter.normal_(0, 0.02, generator=generator)
    return PrunableModel.of(model.eval().requires_grad_(False))


def kept(prunable: PrunableModel, keep: float) -> Tensor:
    """A random mask (n,) bool on the CPU with the same share of every block."""
    return cut(prunable, dict.fromkeys(prunable.blocks, keep))


def cut(prunable: PrunableModel, shares: dict[Key, float]) -> Tensor:
    """A random mask (n,) bool on the CPU with these shares of some blocks, one unit at least; the others are whole."""
    mask, generator = torch.ones(prunable.units.n, dtype=torch.bool), torch.Generator().manual_seed(0)
    for key, view in prunable.units.views(mask).items():
        if key in shares:
            count = max(1, round(shares[key] * len(view)))
            view[torch.randperm(len(view), generator=generator)[count:]] = False
    return mask


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A shape on a device, and so many random sequences of so many tokens.

    After `limit` seconds of statistics the layers that are left are estimated from those that were measured.
    """

    name: str
    device: torch.device
    sequences: int
    length: int
    limit: float

    @cached_property
    def prunable(self) -> PrunableModel:
        """The model, made when the first part wants it."""
        return made(self.name, self.device, self.length)

    @cached_property
    def data(self) -> Sequences:
        """Calibration sequences."""
        shape, generator = (self.sequences, self.length), torch.Generator().manual_seed(0)
        return Sequences(torch.randint(SHAPES[self.name]["vocab_size"], shape, generator=generator))

    @cached_property
    def batches(self) -> list[dict[str, Tensor]]:
        """Inputs of the statistics."""
        return [self.data.inputs(rows) for rows in by_length(self.data.lengths, BATCH)]

    def now(self) -> float:
        """Seconds on the clock when the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def peak(self, stage: Result) -> float:
        """Most memory in MB of a stage as `measured` has it: the device's, or the whole process's on a CPU."""
        return float(stage["peak_gpu_memory_mb" if self.device.type == "cuda" else "peak_memory_mb"])

    def release(self) -> None:
        """Forget the model, and give its memory back."""
        vars(self).pop("prunable", None)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


class Timed:
    """A function whose seconds are summed while `on`; the device is waited for before and after it."""

    def __init__(self, subject: Subject, function: Callable[..., Any]) -> None:
        self._subject, self._function, self.on, self.seconds = subject, function, False, 0.0

    def __call__(self, *args: Any) -> Any:
        if not self.on:
            return self._function(*args)
        began = self._subject.now()
        out = self._function(*args)
        self.seconds += self._subject.now() - began
        return out

    def taken(self) -> float:
        """The seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds
