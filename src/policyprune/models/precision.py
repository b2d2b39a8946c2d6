"""Which dtype the weights are held in, and which one the forward passes of a search are computed in."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from policyprune.config.schema import Model

NATIVE = ("avx512_bf16", "amx_bf16")  # what a processor multiplies bfloat16 with


def dtype_of(config: Model, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU that has it, float16 on one that has not, float32 elsewhere."""
    if config.dtype != "auto":
        return _named(config.dtype)
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def search_dtype_of(config: Model, held: torch.dtype, device: torch.device) -> torch.dtype:
    """`auto` is the dtype that the weights are held in, but bfloat16 for float32 on a processor made for it."""
    if config.search_dtype != "auto":
        return _named(config.search_dtype)
    return torch.bfloat16 if held == torch.float32 and device.type == "cpu" and _multiplies_bfloat16() else held


def in_search_dtype(model: PreTrainedModel, config: Model) -> PreTrainedModel:
    """The model that a search evaluates: a copy whose weights have the search's dtype, itself where they have it.

    Losses are reduced in float32 whatever the dtype. Buffers stay as they are, rotary frequencies need their float32.
    """
    dtype = search_dtype_of(config, model.dtype, model.device)
    if dtype == model.dtype:
        return model
    converted: dict[int, Any] = {
        id(own): nn.Parameter(own.to(dtype), requires_grad=own.requires_grad) for own in model.parameters()
    }
    return copy.deepcopy(model, converted)


def _named(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _multiplies_bfloat16() -> bool:
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in NATIVE)
