"""Whether what was loaded is the model that was asked for: its class, its tokens, and all of its weights."""

import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from policyprune.config.schema import Model
from policyprune.errors import UsageError
from policyprune.models import modelling_file
from policyprune.models.residual import KEPT_HIDDEN_SIZE

WRAPPERS = ("_orig_mod.", "module.")  # what torch.compile and DataParallel put before the names
BUFFERS = re.compile(r"(^|\.)(masked_bias|inv_freq|position_ids)$")  # which older versions saved, and nobody reads
NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # tokens that a tokenizer adds by itself
SHOWN = 3  # keys


def check_config(source: str, stated: PreTrainedConfig) -> None:
    """UsageError for a model without layers, and for one that transformers 4 pruned."""
    layers = getattr(stated, "num_hidden_layers", None)
    if layers is not None and layers < 1:
        raise UsageError(f"model.source: {source!r} has num_hidden_layers={layers} in its config.json")
    if any(getattr(stated, "pruned_heads", None) or {}):
        raise UsageError(
            f"model.source: {source!r} has pruned_heads in its config.json, which transformers 5 no longer reads"
        )


def check_code(config: Model, stated: PreTrainedConfig) -> None:
    """UsageError for layers of unequal width, which the stock classes cannot build, without leave to run own code."""
    if config.trust_remote_code:
        return
    if getattr(stated, KEPT_HIDDEN_SIZE, None) is not None:
        raise UsageError(
            f"model.trust_remote_code: false, but {config.source!r} lost hidden channels, which its own code builds"
        )
    if getattr(stated, "is_heterogeneous", False):
        raise UsageError(
            f"model.trust_remote_code: false, but the layers of {config.source!r} have unequal widths, "
            "which its own code builds"
        )


def check_keys(source: str, model: PreTrainedModel, loading_info: Mapping[str, Any], new_head: bool = False) -> None:
    """UsageError where weights are missing, of another shape, or there and not used.

    `loading_info` is what transformers says of its loading. With `new_head` the head's weights may be missing. Another
    head in the checkpoint, which the model lacks, is no fault, and neither is what the class itself declares as none.
    """

    def counted(keys: Iterable[str]) -> set[str]:
        return {key for key in keys if not (new_head and _of_head(model, key))}

    missing = counted(loading_info["missing_keys"])
    reshaped = counted(key for key, *_ in loading_info["mismatched_keys"])
    unused = {key for key in counted(loading_info["unexpected_keys"]) if _has_place(model, key)}
    if not (missing or reshaped or unused):
        return
    if missing:
        unused = set(loading_info["unexpected_keys"])
    faults = [
        f"{len(keys)} weights {what} ({_first(keys)})"
        for keys, what in ((missing, "are missing"), (unused, "are not used"), (reshaped, "have another shape"))
        if keys
    ]
    raise UsageError(
        f"model.source: {source!r} holds other weights than a {type(model).__name__} of its config.json has: "
        f"{', '.join(faults)}{_likely_cause(model, missing, reshaped, unused)}"
    )


def check_finite(source: str, model: PreTrainedModel) -> None:
    """UsageError naming the first weight that is not a number; offloaded weights are not looked at."""
    for name, weight in model.named_parameters():
        if weight.is_meta or not weight.is_floating_point() or bool(weight.sum(dtype=torch.float32).isfinite()):
            continue
        count = int((~weight.isfinite()).sum())
        if count:
            raise UsageError(f"model.source: {source!r} has {count:,} NaN or infinite weights in {name}")


def check_tokens(source: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """UsageError for tokens beyond the embedding. Some models have special tokens there that no text contains."""
    embedding = model.get_input_embeddings()
    rows = getattr(embedding, "num_embeddings", None)
    if rows is None or len(tokenizer) <= rows:
        return
    unused = {index for index, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    unused -= {getattr(tokenizer, f"{name}_token_id", None) for name in NAMED}
    beyond = {token: index for token, index in tokenizer.get_vocab().items() if index >= rows and index not in unused}
    if beyond:
        raise UsageError(
            f"model.source: {source!r} has {rows:,} embedding rows for the {len(tokenizer):,} tokens of its tokenizer: "
            f"{_first(beyond)} would have none"
        )


def check_class(source: str, model: PreTrainedModel) -> None:
    """UsageError for a model that is neither of transformers nor of a modelling file that we write."""
    model_class = type(model)
    if model_class.__module__.startswith("transformers.models."):
        return
    file = inspect.getsourcefile(model_class)
    if file is not None and modelling_file.is_ours(Path(file).read_text(encoding="utf-8")):
        return
    raise UsageError(
        f"model.source: {source!r} computes by a class of its own ({model_class.__name__}), which would be lost: what "
        "is written is of a class of transformers, or of the modelling file of this version; only evaluate takes it"
    )


def _of_head(model: PreTrainedModel, key: str) -> bool:
    prefix = f"{model.base_model_prefix}."
    return prefix != "." and (not key.startswith(prefix) or key.startswith(f"{prefix}pooler."))


def _has_place(model: PreTrainedModel, key: str) -> bool:
    """Whether the model computes with what a key belongs to: a layer more, a bias too many, a LoRA matrix."""
    if BUFFERS.search(key):
        return False
    base = model.base_model
    inside = key.startswith(f"{model.base_model_prefix}.") and base is not model
    owner, name = (base, key.removeprefix(f"{model.base_model_prefix}.")) if inside else (model, key)
    first = name.partition(".")[0]
    if first == "pooler":
        return hasattr(owner, "pooler") and owner.pooler is not None
    return inside or any(first in dict(module.named_children()) for module in (owner, base))


def _likely_cause(model: PreTrainedModel, missing: set[str], reshaped: set[str], unused: set[str]) -> str:
    for wrapper in WRAPPERS:
        if missing and unused and all(wrapper in key for key in unused):
            return f"; every name has {wrapper!r} in it, take that off and save them again"
    if missing and not reshaped and all(_of_head(model, key) for key in missing):
        if model.get_output_embeddings() is not None:
            return "; tie_word_embeddings=true in config.json says that it is the embedding"
        return "; its head was never trained, policyprune finetune trains one"
    return ""


def _first(keys: Iterable[str]) -> str:
    names = sorted(keys)
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
