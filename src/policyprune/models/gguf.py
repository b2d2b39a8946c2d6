"""GGUF files: converted once, by transformers, into a checkpoint in the user's cache folder."""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils

from policyprune.models.checks import check_keys
from policyprune.progress import bars_of
from policyprune.storage.cache import cache_folder, made_once
from policyprune.storage.files import write_folder


def converted(file: Path) -> Path:
    """Return a directory with the float32 checkpoint and tokenizer of a GGUF file; made whole, once, kept for later.

    Other processes that want the same wait for the one that makes it.
    """
    state = file.stat()
    made_from = (file.resolve(), state.st_size, state.st_mtime_ns, version("transformers"))
    identity = hashlib.sha256(":".join(map(str, made_from)).encode()).hexdigest()
    target = cache_folder() / "gguf" / f"{file.stem}-{identity[:12]}"
    return made_once(target, lambda folder: _convert(file, folder))


def _convert(file: Path, target: Path) -> None:
    ours = bars_of(modeling_gguf_pytorch_utils, title=f"converting {file.name}", unit="tensor")
    with write_folder(target) as scratch, ours:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True
        )
        model, loading_info = loaded
        check_keys(str(file), model, loading_info)
        model.hf_quantizer = None  # the weights are plain float32 now, and may be saved as such
        del model.config.quantization_config
        model.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(scratch)
