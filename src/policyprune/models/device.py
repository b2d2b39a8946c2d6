"""On which device and in which dtype the weights are held, and in which dtype the forward passes of a search run."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from policyprune.config.schema import Model
from policyprune.errors import UsageError

NATIVE = ("avx512_bf16", "amx_bf16")  # what a processor multiplies bfloat16 with


def device_of(config: Model) -> torch.device:
    """`auto` is cuda where there is one, else cpu. UsageError for a device that this machine lacks."""
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # a device without values, as meta, is none
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"model.device: {config.device!r} is not on this machine, use auto or cpu") from error
    return device


def dtype_of(config: Model, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU that has it, float16 on one that has not, float32 elsewhere."""
    if config.dtype != "auto":
        return _named(config.dtype)
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def search_dtype_of(choice: str, held: torch.dtype, device: torch.device) -> torch.dtype:
    """`auto` is the dtype that the weights are held in, but bfloat16 for float32 on a processor made for it."""
    if choice != "auto":
        return _named(choice)
    return torch.bfloat16 if held == torch.float32 and device.type == "cpu" and _multiplies_bfloat16() else held


def in_search_dtype(model: PreTrainedModel, choice: str = "auto") -> PreTrainedModel:
    """The model that a search evaluates: a copy whose weights have the dtype of `choice`, itself where they have it.

    Losses are reduced in float32 whatever the dtype. Buffers stay as they are, rotary frequencies need their float32.
    """
    dtype = search_dtype_of(choice, model.dtype, model.device)
    if dtype == model.dtype:
        return model
    converted: dict[int, Any] = {
        id(weight): nn.Parameter(weight.to(dtype), requires_grad=weight.requires_grad) for weight in model.parameters()
    }
    return copy.deepcopy(model, converted)


def _named(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _multiplies_bfloat16() -> bool:
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in NATIVE)
