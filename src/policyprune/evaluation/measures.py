"""Everything that is measured of one model, as rows (metric, value, unit, protocol)."""

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from policyprune.config.schema import Evaluation
from policyprune.evaluation.efficiency import block_macs, block_parameters, parameters
from policyprune.evaluation.perplexity import perplexity
from policyprune.models.adapter import adapt
from policyprune.progress import bar

Measure = tuple[str, float | int, str, dict[str, Any]]


def quality(title: str, model: PreTrainedModel, windows: dict[int, Tensor], config: Evaluation) -> list[Measure]:
    """Perplexity for each window length."""
    rows: list[Measure] = []
    for length, ids in windows.items():
        with bar(len(ids), f"{title}, {length} tokens", "window") as progress:
            value = perplexity(model, ids, config.batch_tokens, progress.update)
        protocol = {"length": length, "windows": len(ids), "dtype": str(model.dtype).removeprefix("torch.")}
        rows.append(("perplexity", value, "", protocol))
    return rows


def size(model: PreTrainedModel, sequence_length: int) -> list[Measure]:
    """Parameters, and parameters and multiply-accumulates of the blocks, of the model as it is."""
    adapter = adapt(model)
    return [
        ("parameters", parameters(model), "", {}),
        ("block_parameters", block_parameters(model, adapter), "", {}),
        ("block_macs", block_macs(adapter, sequence_length), "", {"sequence_length": sequence_length}),
    ]


def checkpoint_megabytes(folder: Path) -> float:
    """Size of the weight files of a checkpoint, MB."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6


def weight_megabytes(model: PreTrainedModel) -> float:
    """What the weights of a model take as a checkpoint in its dtype, MB."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 1e6
