"""Which device a training is on, and how several processes share it: each a part of the batch, or of the weights, too.

Weights are shared by FSDP2, where `accelerate launch` is told to. The dense model is whole in each process.
"""

import os

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from policyprune.errors import UsageError
from policyprune.processes import processes


def shards_weights() -> bool:
    """Whether each process has a part of the weights that are trained."""
    return processes() > 1 and _said("ACCELERATE_USE_FSDP")


def load_whole_models() -> None:
    """From here on transformers loads weights in every process, not in the first one alone for the others."""
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"


def check_device(device: torch.device) -> None:
    """UsageError for a GPU that is not the first, which the Trainer would not train on, and for ways to share the
    weights that are not FSDP2."""
    if device.index and processes() == 1:
        raise UsageError(
            f"model.device: '{device}' is not the first GPU, which is trained on; "
            f"set CUDA_VISIBLE_DEVICES={device.index} and model.device=cuda"
        )
    if processes() > 1 and (_said("ACCELERATE_USE_DEEPSPEED") or _said("ACCELERATE_USE_MEGATRON_LM")):
        raise UsageError("recovery: weights are shared between processes by FSDP2 alone, give accelerate such a config")
    if shards_weights():
        check_sharding(device)


def check_sharding(device: torch.device) -> None:
    """UsageError for what FSDP2 is not, or not here."""
    if device.type == "cpu":  # where accelerate would pass over it, and every process would have all weights
        raise UsageError(
            "recovery: accelerate shares weights (FSDP) between GPUs alone; start torchrun for processes on CPUs"
        )
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UsageError("recovery: weights are shared by FSDP2, set fsdp_version: 2 in the config of accelerate")
    if _said("FSDP_ACTIVATION_CHECKPOINTING"):
        raise UsageError(
            "recovery: fsdp_activation_checkpointing renames the weights, use recovery.gradient_checkpointing=true"
        )


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU that nothing holds."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights that ask for gradients, by the names of their modules; where processes have parts of them, whole, in
    the first process. All processes call it."""
    names = [name for name, own in model.named_parameters() if own.requires_grad]
    if shards_weights():
        whole = get_model_state_dict(
            model, options=StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        )
        return {name: own for name in names if isinstance(own := whole.get(name), Tensor)}
    weights = dict(model.named_parameters())
    return {name: weights[name].detach() for name in names}


def _said(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"
