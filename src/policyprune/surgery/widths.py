"""How a config states the widths of a pruned model."""

import copy
from collections.abc import Iterable
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from policyprune.models.adapter import Adapter
from policyprune.models.residual import KEPT
from policyprune.pruning.space import HIDDEN, Space
from policyprune.surgery.depth import state_depth


def state_widths(
    model: PreTrainedModel,
    adapter: Adapter,
    space: Space,
    mask: Tensor,
    layers: list[int],
    biased: Iterable[tuple[int, str]] = (),
) -> None:
    """Write the kept counts of each layer into the model's config, in the stock keys where all layers agree.

    `layers` are those that remain, `biased` the blocks whose output projection has a bias that the stock class has not.
    """
    family = adapter.family
    names = {"attention": family.group_count, "ffn": family.channel_count}
    counts: dict[int | str, dict[str, Any]] = {}
    kept = {(block.layer, block.kind): block.count for block in adapter.blocks}
    kept |= {key: int(view.sum()) for key, view in space.views(mask.bool()).items() if key != HIDDEN}
    heads = {(block.layer, block.kind): block.heads for block in adapter.blocks}
    for (layer, kind), count in kept.items():
        if layer in layers:
            counts.setdefault(layers.index(layer), {})[names[kind]] = count * heads[layer, kind]
    everywhere = list(counts.values())
    added = set(biased)
    for index, layer in enumerate(layers) if added else ():
        counts[index]["output_biases"] = sorted(kind for own, kind in added if own == layer)
    state_depth(model.config, adapter, layers)  # in the config that the layers share, too: the model counts them by it
    uniform = len(everywhere) == len(layers) and all(c == everywhere[0] for c in everywhere)
    stock = (
        _stock(model.config, adapter, everywhere[0])
        if uniform and not added and 0 not in everywhere[0].values()
        else None
    )
    if stock is not None:
        model.config = stock
    else:
        model.config = copy.deepcopy(model.config)
        model.config.attention_head_size = adapter.head_dim
        model.config.per_layer_config = counts
        model.config.allow_global_per_layer_attribute_access = True  # GPT-NeoX's own validation reads the head count


def state_hidden(model: PreTrainedModel, adapter: Adapter, count: int) -> None:
    """Write the number of kept hidden channels into the model's config.

    The stock class is built with `hidden_size` alone, so that is the smaller one where the size of a head is stated and
    nothing but shapes follows from it. Elsewhere `hidden_size` stays the dense one, by which a modelling file builds
    the model before it takes the channels away, and `KEPT` says how many are left.
    """
    config, family = model.config, adapter.family
    assert adapter.hidden is not None
    dense = getattr(config, KEPT, None) is not None or getattr(config, "is_heterogeneous", False)
    if family.head_dim and not adapter.hidden.scaled and not dense:
        stock = _restated(config, {"hidden_size": count, family.head_dim: adapter.head_dim})
        if stock is not None:
            model.config = stock
            return
    model.config = copy.deepcopy(config)
    setattr(model.config, KEPT, count)


def stated_biases(config: PreTrainedConfig) -> set[tuple[int, str]]:
    """The blocks, by (layer, kind), whose output projection has a bias that the stock class has not."""
    before = config.to_dict().get("per_layer_config") or {}
    return {(int(layer), kind) for layer, own in before.items() for kind in own.get("output_biases", [])}


def _stock(config: PreTrainedConfig, adapter: Adapter, counts: dict[str, int]) -> PreTrainedConfig | None:
    """The config of the stock class with other widths; None where the family's own validation refuses it."""
    family, changes = adapter.family, dict(counts)
    if not hasattr(config, family.channel_count):
        return None  # the stock class takes the number of channels from the hidden size
    if family.group_count in counts:
        block = next(block for block in adapter.blocks if block.kind == "attention" and block.count)
        per_group = block.width // block.heads // adapter.head_dim
        changes[family.head_count] = counts[family.group_count] * per_group
        if family.head_dim:
            changes[family.head_dim] = adapter.head_dim
        elif changes[family.head_count] != getattr(config, family.head_count):
            return None  # the stock class takes the head size from the hidden size
    return _restated(config, changes)


def _restated(config: PreTrainedConfig, changes: dict[str, int]) -> PreTrainedConfig | None:
    stated = {key: value for key, value in config.to_dict().items() if key not in ("per_layer_config", "auto_map")}
    try:
        return type(config)(**{**stated, **changes})
    except (StrictDataclassError, ValueError):
        return None
