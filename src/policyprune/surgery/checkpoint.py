"""Write a model as a directory that `AutoModel*.from_pretrained` loads, with policyprune or without it."""

import json
import pprint
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from policyprune.files import write_folder
from policyprune.models.adapter import Adapter
from policyprune.models.residual import KEPT
from policyprune.surgery import unequal

MODULE = "modeling_pruned"
TEMPLATE = '''

class {name}({base}):
    """{base} with the widths in config.json: `per_layer_config` of the layers, `kept_hidden_size` between them."""

    def __init__(self, config):
        per_layer = config.to_dict().get("per_layer_config")
        config.per_layer_config = None  # the stock class is built with the dense widths first
        super().__init__(config)
        if per_layer:
            resize(self, TABLE, per_layer)
            config.per_layer_config = per_layer
            config.allow_global_per_layer_attribute_access = True  # generation and others read the dense counts
        if getattr(config, "kept_hidden_size", None):
            narrow(self, TABLE, config.kept_hidden_size)
'''


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
        if own_code:
            _add_modelling_file(model, adapter, scratch)


def stock_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    """The transformers class of a model, also of one that a checkpoint's own modelling file made."""
    return next(own for own in type(model).__mro__ if own.__module__.startswith("transformers.models."))


def auto_class(model: PreTrainedModel) -> str:
    """The class that loads a checkpoint of `model`: AutoModelForCausalLM, AutoModelForSequenceClassification, ..."""
    _, head, task = type(model).__name__.rpartition("For")
    return f"AutoModelFor{task if head else 'CausalLM'}"  # GPT2LMHeadModel


def _add_modelling_file(model: PreTrainedModel, adapter: Adapter, folder: Path) -> None:
    base = stock_class(model).__name__
    name = f"Pruned{base}"
    source = Path(unequal.__file__).read_text(encoding="utf-8")
    table = pprint.pformat(_table(adapter), width=110, sort_dicts=False)
    class_text = TEMPLATE.format(name=name, base=base)
    head = f"# Written by policyprune; load with {auto_class(model)}.from_pretrained(folder, trust_remote_code=True)\n"
    source = source.replace("from transformers", f"from transformers import {base}\nfrom transformers", 1)
    (folder / f"{MODULE}.py").write_text(f"{head}{source}\n\nTABLE = {table}\n{class_text}", encoding="utf-8")
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["architectures"] = [name]
    config["auto_map"] = {auto_class(model): f"{MODULE}.{name}"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def needs_code(config: PreTrainedConfig) -> bool:
    """Whether the widths of a model are none that its stock class can be built with."""
    return bool(getattr(config, "is_heterogeneous", False)) or getattr(config, KEPT, None) is not None


def _table(adapter: Adapter) -> dict[str, Any]:
    """Of each kind of block in a layer: the config key of its count, its name, its linear modules."""
    family = adapter.family
    table: dict[str, Any] = {"layers": adapter.layers[0].rpartition(".")[0]}
    kinds = (("attention", family.group_count, family.attention), ("ffn", family.channel_count, family.ffn))
    for kind, count, names in kinds:
        block = next((block for block in adapter.blocks if block.kind == kind and block.parts), None)
        if block is None:  # nothing is left in any layer, and so nothing to resize
            table[kind] = {
                "count": count,
                "block": names.block,
                "parts": [[names.out, "in", 0]],
                "sizes": [],
                "adds_residual": names.adds_residual,
            }
            continue
        prefix = adapter.layers[block.layer] + "."
        parts = [[part.module.removeprefix(prefix), part.axis, part.width // block.heads] for part in block.parts]
        table[kind] = {
            "count": count,
            "block": block.path and block.path.removeprefix(prefix),
            "parts": parts,
            "sizes": [list(size) for size in block.sizes],
            "adds_residual": block.adds_residual,
        }
    if adapter.hidden is not None:
        hidden = adapter.hidden
        table["hidden"] = {"inside": [list(own) for own in hidden.inside], "outside": [list(o) for o in hidden.outside]}
    return table
