"""Write a model as a directory that `AutoModel*.from_pretrained` loads, with policyprune or without it."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from policyprune.models import modelling_file
from policyprune.models.adapter import Adapter
from policyprune.models.older_config import keys_of_4
from policyprune.models.residual import KEPT_HIDDEN_SIZE
from policyprune.storage.files import write_folder
from policyprune.surgery.sizes import stock_queries


def save_checkpoint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    adapter: Adapter,
    folder: Path,
    max_shard_size: str = "5GB",
) -> None:
    """Write config, weights (sharded safetensors), tokenizer and, where it needs one, a short modelling file.

    Everything is written into a scratch folder beside `folder`, which it then replaces.
    """
    with write_folder(folder) as scratch:
        model.__class__ = stock_class(model)  # a model pruned before would carry its old modelling file along
        own_code = needs_code(model.config)
        # transformers renames no weights for a class that is not its own, so those keep the names of the modules
        model.save_pretrained(scratch, max_shard_size=max_shard_size, save_original_format=not own_code)
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch)
        stated = keys_of_4(model.config)
        if own_code:
            stated |= _add_modelling_file(model, adapter, scratch)
        _state(scratch / "config.json", stated)


def stock_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    """The transformers class of a model, also of one that a checkpoint's own modelling file made."""
    return next(kind for kind in type(model).__mro__ if kind.__module__.startswith("transformers.models."))


def auto_class(model: PreTrainedModel) -> str:
    """The class that loads a checkpoint of `model`: AutoModelForCausalLM, AutoModelForSequenceClassification, ..."""
    _, head, task = type(model).__name__.rpartition("For")
    return f"AutoModelFor{task if head else 'CausalLM'}"  # GPT2LMHeadModel


def _add_modelling_file(model: PreTrainedModel, adapter: Adapter, folder: Path) -> dict[str, Any]:
    """Write it, and return the keys of config.json that name its class."""
    base, auto = stock_class(model).__name__, auto_class(model)
    content = modelling_file.text(auto, base, _table(model, adapter))
    (folder / f"{modelling_file.MODULE}.py").write_text(content, encoding="utf-8")
    name = modelling_file.class_name(base)
    return {"architectures": [name], "auto_map": {auto: f"{modelling_file.MODULE}.{name}"}}


def _state(path: Path, keys: dict[str, Any]) -> None:
    """Add keys to a config.json, which names no code but ours: what is saved is of a stock class otherwise."""
    written = json.loads(path.read_text(encoding="utf-8"))
    config = {**{key: value for key, value in written.items() if key != "auto_map"}, **keys}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def needs_code(config: PreTrainedConfig) -> bool:
    """Whether the widths of a model are none that its stock class can be built with."""
    return bool(getattr(config, "is_heterogeneous", False)) or getattr(config, KEPT_HIDDEN_SIZE, None) is not None


def _table(model: PreTrainedModel, adapter: Adapter) -> dict[str, Any]:
    """Of each kind of block in a layer: the config key of its count, its name, its modules (`unequal.resize`)."""
    family = adapter.family
    attention, ffn = family.attention, family.ffn
    parts = [(attention.query, "heads"), (attention.key, "groups"), (attention.value, "groups")]
    table: dict[str, Any] = {
        "layers": adapter.layers[0].rpartition(".")[0],
        "attention": {
            "count": family.group_count,
            "block": attention.block,
            "parts": [*([name, "out", owner] for name, owner in parts), [attention.out, "in", "heads"]],
            "width": adapter.head_dim,
            "queries": stock_queries(model.config, adapter),
            "sizes": [list(size) for size in attention.sizes],
            "adds_residual": attention.adds_residual,
        },
        "ffn": {
            "count": family.channel_count,
            "block": ffn.block,
            "parts": [*([name, "out", "groups"] for name in ffn.inputs), [ffn.out, "in", "groups"]],
            "width": 1,
            "queries": 1,
            "sizes": [],
            "adds_residual": ffn.adds_residual,
        },
    }
    if adapter.hidden is not None:
        hidden = adapter.hidden
        places = {"inside": hidden.inside, "outside": hidden.outside}
        table["hidden"] = {where: [list(place) for place in named] for where, named in places.items()}
    return table
