"""Sizes of a model, as measures (metric, value, unit, protocol)."""

from pathlib import Path

from transformers import PreTrainedModel

from policyprune.evaluation.efficiency import block_macs, block_parameters, parameters
from policyprune.evaluation.measure import Measure
from policyprune.models.adapter import adapt


def size(model: PreTrainedModel, sequence_length: int) -> list[Measure]:
    """Parameters, and parameters and multiply-accumulates of the blocks, of the model as it is."""
    adapter = adapt(model)
    return [
        Measure("parameters", parameters(model), "", {}),
        Measure("block_parameters", block_parameters(model, adapter), "", {}),
        Measure("block_macs", block_macs(adapter, sequence_length), "", {"sequence_length": sequence_length}),
    ]


def checkpoint_megabytes(folder: Path) -> float:
    """Size of the weight files of a checkpoint, MB."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6


def weight_megabytes(model: PreTrainedModel) -> float:
    """What the weights of a model take as a checkpoint in its dtype, MB."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 1e6
