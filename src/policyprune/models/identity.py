"""What a model computes with, as hashes of the content: two models of the same identity give the same numbers."""

import hashlib
import inspect
import json
import platform
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.provenance import installed_versions, source_hash

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "accelerate", "datasets", "lm_eval")
STOCK = ("transformers.", "torch.")  # their versions stand for their code


def identity_of(model: PreTrainedModel) -> dict[str, Any]:
    """Weights and buffers bit by bit, the code that computes with them, and where. About a second for 500 MB."""
    classes = {base.__module__: base for module in model.modules() for base in type(module).__mro__}
    code = {name: _code_of(base) for name, base in sorted(classes.items()) if not name.startswith((*STOCK, "builtins"))}
    return {
        "weights": _tensors(model),
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "code": code,
        "config": json.dumps(model.config.to_dict(), sort_keys=True, default=str),
        "attention": model.config._attn_implementation,
        "devices": sorted({_device(parameter.device) for parameter in model.parameters()}),
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "versions": installed_versions(LIBRARIES),
        "policyprune": source_hash(),
    }


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of what a tokenizer makes of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = [type(tokenizer).__qualname__, repr(sorted(tokenizer.init_kwargs.items(), key=str))]
    content.append(backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True))
    return _hash("\n".join(content).encode())


def _tensors(model: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()


def _code_of(model_class: type) -> str:
    """Hash of the Python files beside the one that a class stands in, as they may be imported by it."""
    try:
        file = inspect.getsourcefile(model_class)
    except TypeError:
        file = None
    if file is None:
        return model_class.__qualname__
    return _hash(b"\n".join(path.read_bytes() for path in sorted(Path(file).parent.glob("*.py"))))


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.machine()}"


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
