"""A measured number, and the sizes of a model as measures."""

import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from policyprune.models.adapter import Adapter, adapt


class Measure(NamedTuple):
    """A measured number, None where it is not finite; `stderr` is the standard error of a mean over examples."""

    metric: str
    value: float | int | None
    unit: str
    protocol: dict[str, Any]
    stderr: float | None = None


def finite(value: float | int | None) -> float | int | None:
    """The number, None where it is not one or infinite."""
    return value if value is not None and math.isfinite(value) else None


def digest(ids: Tensor) -> str:
    """What tells the token ids that a model is measured on from others."""
    return hashlib.sha256(ids.numpy().tobytes()).hexdigest()


def size(model: PreTrainedModel, sequence_length: int) -> list[Measure]:
    """Parameters, and parameters and multiply-accumulates of the blocks, of the model as it is."""
    adapter = adapt(model)
    return [
        Measure("parameters", parameters(model), "", {}),
        Measure("block_parameters", block_parameters(model, adapter), "", {}),
        Measure("block_macs", block_macs(adapter, sequence_length), "", {"sequence_length": sequence_length}),
    ]


def parameters(model: PreTrainedModel) -> int:
    """All parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def block_parameters(model: PreTrainedModel, adapter: Adapter) -> int:
    """Parameters of the transformer blocks."""
    return sum(parameter.numel() for path in adapter.layers for parameter in model.get_submodule(path).parameters())


def block_macs(adapter: Adapter, length: int) -> int:
    """Multiply-accumulates of the blocks for one sequence: linear layers and attention (full, not causal)."""
    return sum(block.count * block.macs(length) for block in adapter.blocks)


def weight_megabytes(model: PreTrainedModel) -> float:
    """What the weights of a model take as a checkpoint in its dtype, MB."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 1e6


def checkpoint_megabytes(folder: Path) -> float:
    """Size of the weight files of a checkpoint, MB."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6
