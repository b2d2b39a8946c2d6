"""How much a token of a calibration batch weighs in a tuning."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from policyprune.models.adapter import Adapter


@torch.no_grad()
def weights(model: Any, adapter: Adapter, batches: list[dict[str, Tensor]]) -> list[list[Tensor]]:
    """1 over the root mean square of the residual behind each layer, by layer and batch: (B, T, 1)."""
    seen: list[list[Tensor]] = [[] for _ in adapter.layers]

    def collect(module: Any, args: Any, out: Any, index: int) -> None:
        residual = out[0] if isinstance(out, tuple) else out
        seen[index].append(residual.double().square().mean(-1, keepdim=True).rsqrt())

    handles = [
        model.get_submodule(path).register_forward_hook(partial(collect, index=index))
        for index, path in enumerate(adapter.layers)
    ]
    for batch in batches:
        model(**batch)
    for handle in handles:
        handle.remove()
    return seen
