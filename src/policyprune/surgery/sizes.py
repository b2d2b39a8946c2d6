"""How many layers and how much of each are left: what of a model goes as a whole, and what its config says then."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from policyprune.models.adapter import Adapter
from policyprune.models.query_heads import can_split
from policyprune.models.residual import KEPT_HIDDEN_SIZE
from policyprune.models.unequal import QUERIES, EmptyBlock
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import Key


def kept_layers(prunable: PrunableModel, mask: Tensor, biased: Iterable[Key] = ()) -> list[int]:
    """Layers that remain under a mask (n,) of units: those with a unit left, and the first one where there is none.

    A block in `biased` still adds its bias and keeps its layer. All remain in a family whose empty layers still compute
    something (post-norm).
    """
    if not prunable.adapter.removable_layers:
        return list(range(len(prunable.adapter.layers)))
    counts = prunable.kept_counts(mask)
    return sorted({layer for (layer, _), count in counts.items() if count} | {layer for layer, _ in biased}) or [0]


def keep_layers(model: PreTrainedModel, adapter: Adapter, kept: list[int]) -> None:
    """Delete the other layers of a model in place and tell the later ones their new place; its config stays."""
    if len(kept) == len(adapter.layers):
        return
    layers = nn.ModuleList([model.get_submodule(adapter.layers[layer]) for layer in kept])
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if isinstance(module, EmptyBlock):
                module.layer = index
            elif hasattr(module, adapter.family.layer_index):
                setattr(module, adapter.family.layer_index, index)
    model.set_submodule(adapter.layers[0].rpartition(".")[0], layers)


def state_depth(config: PreTrainedConfig, adapter: Adapter, kept: list[int]) -> None:
    """Write into a config how many layers there are and what each of them is, for the layers `kept`."""
    if len(kept) == len(adapter.layers):
        return
    family = adapter.family
    for key in family.layer_lists:
        stated = getattr(config, key, None)
        if stated:
            setattr(config, key, [stated[layer] for layer in kept])
    setattr(config, family.layer_count, len(kept))


def state_widths(prunable: PrunableModel, mask: Tensor, layers: list[int], biased: Iterable[Key] = ()) -> None:
    """Write the kept counts of each layer into the model's config, in the stock keys where all layers agree.

    `layers` are those that remain, `biased` the blocks whose output projection has a bias that the stock class has not.
    """
    model, adapter, family = prunable.model, prunable.adapter, prunable.adapter.family
    usual, views = stock_queries(model.config, adapter), prunable.views(mask)
    counts: dict[int | str, dict[str, Any]] = {}
    for (layer, kind), block in prunable.blocks.items():
        if layer not in layers:
            continue
        own = counts.setdefault(layers.index(layer), {})
        kept = views[layer, kind].nonzero().flatten() if (layer, kind) in views else torch.arange(block.count)
        if kind == "ffn":
            own[family.channel_count] = len(kept)
            continue
        groups, queries = block.heads_left(len(kept), len(block.groups_of(kept)))
        own |= {family.group_count: groups, QUERIES: queries if groups else usual}
    if all(own[QUERIES] == usual for own in counts.values()):
        for own in counts.values():
            del own[QUERIES]
    everywhere = list(counts.values())
    added = set(biased)
    for index, layer in enumerate(layers) if added else ():
        counts[index]["output_biases"] = sorted(kind for biased_layer, kind in added if biased_layer == layer)
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
    the model before it takes the channels away, and `KEPT_HIDDEN_SIZE` says how many are left.
    """
    config, family = model.config, adapter.family
    assert adapter.hidden is not None
    dense = getattr(config, KEPT_HIDDEN_SIZE, None) is not None or getattr(config, "is_heterogeneous", False)
    if family.head_dim and not adapter.hidden.scaled and not dense:
        stock = _restated(config, {"hidden_size": count, family.head_dim: adapter.head_dim})
        if stock is not None:
            model.config = stock
            return
    model.config = copy.deepcopy(config)
    setattr(model.config, KEPT_HIDDEN_SIZE, count)


def stated_biases(config: PreTrainedConfig) -> set[Key]:
    """The blocks, by (layer, kind), whose output projection has a bias that the stock class has not."""
    before = config.to_dict().get("per_layer_config") or {}
    return {(int(layer), kind) for layer, widths in before.items() for kind in widths.get("output_biases", [])}


def stock_queries(config: PreTrainedConfig, adapter: Adapter) -> int:
    """Query heads of a key/value head in the stock class of this config, whatever its layers have lost."""
    if can_split(adapter):
        return int(getattr(config, adapter.family.head_count) // getattr(config, adapter.family.group_count))
    return next((block.queries for block in adapter.blocks if block.kind == "attention" and block.count), 1)


def _stock(config: PreTrainedConfig, adapter: Adapter, counts: dict[str, int]) -> PreTrainedConfig | None:
    """The config of the stock class with other widths; None where the family's own validation refuses it."""
    family, changes = adapter.family, {key: count for key, count in counts.items() if key != QUERIES}
    if not hasattr(config, family.channel_count):
        return None  # the stock class takes the number of channels from the hidden size
    if family.group_count in counts:
        changes[family.head_count] = counts[family.group_count] * counts.get(QUERIES, stock_queries(config, adapter))
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
