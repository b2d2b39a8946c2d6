"""Adapters of low rank on the linear modules inside the layers of a smaller model, by PEFT."""

import warnings
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from policyprune.models.adapter import adapt
from policyprune.recovery.options import Lora
from policyprune.storage.files import write_folder


def with_adapters(model: PreTrainedModel, options: Lora) -> Any:
    """A PEFT model around `model`, whose own weights ask for no gradients; it computes what the model computes."""
    from peft import LoraConfig, get_peft_model

    targets = [
        f"{layer}.{name}"
        for layer in adapt(model).layers
        for name, module in model.get_submodule(layer).named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module.weight.numel()
    ]
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha or 2 * options.rank,  # type: ignore[arg-type]
        lora_dropout=options.dropout,
        target_modules=targets,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT looks at attributes by names that transformers will drop
        return get_peft_model(model.requires_grad_(False), config)


def save_adapters(adapted: Any, folder: Path) -> None:
    """Write the adapters alone, as `PeftModel.from_pretrained` wants them, for the model without them."""
    adapted.peft_config["default"].base_model_name_or_path = None  # it is no model of the hub
    with write_folder(folder) as scratch:
        adapted.save_pretrained(scratch)


def merged(adapted: Any) -> PreTrainedModel:
    """The model with its adapters worked into its weights."""
    model: PreTrainedModel = adapted.merge_and_unload()
    return model
