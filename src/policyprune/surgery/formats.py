"""The formats of an export: what each refuses, and where it writes."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.config.schema import Export
from policyprune.models.adapter import adapt
from policyprune.surgery.checkpoint import save_checkpoint
from policyprune.surgery.gguf import check_gguf, write_gguf
from policyprune.surgery.onnx import check_onnx, write_onnx


@dataclass(frozen=True)
class Settings:
    """What can be set of the formats."""

    max_shard_size: str
    gguf_dtype: str

    @classmethod
    def of(cls, export: Export) -> "Settings":
        """What a run's config says."""
        return cls(export.max_shard_size, export.gguf_dtype)


def check_formats(
    formats: list[str], model: PreTrainedModel, settings: Settings, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """UsageError for what a format cannot express; the model's structure, without weights, is enough."""
    if "onnx" in formats:
        check_onnx(model)
    if "gguf" in formats:
        check_gguf(model, settings.gguf_dtype, tokenizer)


def target(form: str, folder: Path, settings: Settings) -> Path:
    """Where a format goes inside a run's folder."""
    names = {"hf": "checkpoint", "onnx": "onnx", "gguf": f"model-{settings.gguf_dtype}.gguf"}
    return folder / names[form]


def write_format(
    form: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, settings: Settings
) -> None:
    """Write one format to `path`, whole or not at all; UsageError before anything is written."""
    if form == "hf":
        save_checkpoint(model, tokenizer, adapt(model), path, settings.max_shard_size)
    elif form == "onnx":
        write_onnx(model, tokenizer, path)
    else:
        assert form == "gguf"
        write_gguf(model, tokenizer, path, settings.gguf_dtype)
