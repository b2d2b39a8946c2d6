"""GGUF files: converted once, by transformers, into a checkpoint in the user's cache folder."""

import hashlib
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils

from policyprune.cache import cache_folder
from policyprune.files import write_folder
from policyprune.progress import bars_of


def converted(file: Path) -> Path:
    """Return a directory with the float32 checkpoint and tokenizer of a GGUF file; made atomically, kept for later."""
    identity = hashlib.sha256(f"{file.resolve()}:{file.stat().st_size}:{file.stat().st_mtime_ns}".encode()).hexdigest()
    target = cache_folder() / "gguf" / f"{file.stem}-{identity[:12]}"
    if target.is_dir():
        return target
    ours = bars_of(modeling_gguf_pytorch_utils, title=f"converting {file.name}", unit="tensor")
    with write_folder(target) as scratch, ours:
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        model.hf_quantizer = None  # type: ignore[assignment]  # the weights are plain float32 now, and may be saved as such
        del model.config.quantization_config
        model.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(scratch)
    return target
