"""Masked forwards without some channels of the residual stream.

A pruned channel is zero wherever it is read, and every norm over the channels takes its statistics over the kept ones
alone, as in the shrunk model. No norm is written anew: of d channels with k kept, the norm of x sqrt(d / k) (for
LayerNorm of x less its mean over the kept ones) has the statistics of the kept channels and is sqrt(d / k) too large.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from policyprune.models.residual import Hidden

Current = Callable[[], Tensor | None]


def hooks(model: nn.Module, hidden: Hidden, current: Current) -> list[RemovableHandle]:
    """Install the masks `current()`, (M, 1, d), M = 1 or one per sequence: at all norms, and where layers begin."""
    layer = model.get_submodule(hidden.entry)
    handles = [layer.register_forward_pre_hook(_entry(current), with_kwargs=True)]
    for name in hidden.norms:
        norm = model.get_submodule(name)
        handles.append(norm.register_forward_pre_hook(_before(current)))
        handles.append(norm.register_forward_hook(_after(current)))
    return handles


def _fitting(mask: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The mask on the device of x in float32, and x with the sequences apart, (M, ..., d)."""
    mask = mask.to(device=x.device, dtype=torch.float32)
    return mask, x.view(len(mask), -1, x.shape[-1]) if x.dim() == 2 else x


def _stretch(mask: Tensor) -> Tensor:
    """sqrt(d / k), (M, 1, 1)."""
    return (mask.shape[-1] / mask.sum(-1, keepdim=True).clamp(min=1)).sqrt()


def _entry(current: Current) -> Any:
    def multiply(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mask = current()
        if mask is None:
            return None
        x = args[0] if args else kwargs["hidden_states"]
        x = x * mask.to(device=x.device, dtype=x.dtype)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    return multiply


def _before(current: Current) -> Any:
    def stretch(module: nn.Module, args: tuple[Any, ...]) -> Any:
        mask = current()
        if mask is None:
            return None
        mask, x = _fitting(mask, args[0])
        dtype = torch.float32  # of which RMSNorms make their statistics, whatever comes in
        if isinstance(module, nn.LayerNorm):
            x = x - (x * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
            dtype = args[0].dtype
        x = x * (mask * _stretch(mask))
        return (x.view_as(args[0]).to(dtype), *args[1:])

    return stretch


def _after(current: Current) -> Any:
    def shorten(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Any:
        mask = current()
        if mask is None:
            return None
        mask, y = _fitting(mask, out)
        bias = getattr(module, "bias", None)
        y = y / _stretch(mask) if bias is None else (y - bias) / _stretch(mask) + bias * mask
        weight = getattr(module, "weight", None)
        return y.view_as(out).to(out.dtype if weight is None else weight.dtype)

    return shorten
