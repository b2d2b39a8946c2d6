"""The keys that a config.json needs so that transformers 4 reads the same model from it as transformers 5."""

from typing import Any

from transformers import PreTrainedConfig

NAMES_OF_4 = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}
TYPE_OF_SCALING = ("phi3", "olmo2")  # of these, 4 reads the kind of scaling as `type`, and no other key
PHI3_SCALING = ("short_factor", "long_factor")


def keys_of_4(config: PreTrainedConfig) -> dict[str, Any]:
    """Base, scaling and share of the rotary embeddings under the names of transformers 4, and the dtype.

    transformers 4 does not read `rope_parameters` and takes its own defaults; transformers 5 reads both.
    """
    keys: dict[str, Any] = {}
    if config.dtype is not None:
        keys["torch_dtype"] = str(config.dtype).removeprefix("torch.")
    stated = getattr(config, "rope_parameters", None) or {}
    if "full_attention" in stated:  # gemma3: layers with a window have a base of their own, and never a scaling
        keys["rope_local_base_freq"] = stated["sliding_attention"]["rope_theta"]
        stated = stated["full_attention"]
    names = NAMES_OF_4.get(config.model_type, {})
    for key in ("rope_theta", "partial_rotary_factor"):
        if stated.get(key) is not None:
            keys[names.get(key, key)] = stated[key]
    kind = stated.get("rope_type", "default")
    if kind != "default":
        keys["rope_scaling"] = _scaling(config.model_type, kind, stated)
    return keys


def _scaling(model_type: str, kind: str, stated: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in stated.items() if key not in ("rope_theta", "rope_type", "type")}
    rest.pop("partial_rotary_factor", None)
    if model_type == "phi3":
        rest = {key: value for key, value in rest.items() if key in PHI3_SCALING}
    return {"type" if model_type in TYPE_OF_SCALING else "rope_type": kind, **rest}
