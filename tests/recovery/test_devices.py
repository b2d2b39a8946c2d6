"""Ways to share a training between processes that are refused, in one line, and the one that is not."""

import pytest
import torch

from policyprune.errors import UsageError
from policyprune.recovery.devices import check_device, shards_weights

TWO = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
FSDP = {**TWO, "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
GPU, SECOND, CPU = (torch.device(name) for name in ("cuda", "cuda:1", "cpu"))


@pytest.mark.parametrize(
    ("said", "device", "message"),
    [
        ({}, SECOND, "model.device: 'cuda:1' is not the first GPU"),
        (FSDP, CPU, "recovery: accelerate shares weights .FSDP. between GPUs alone"),
        ({**FSDP, "FSDP_VERSION": "1"}, GPU, "set fsdp_version: 2 in the config of accelerate"),
        ({**FSDP, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, GPU, "use recovery.gradient_checkpointing=true"),
        ({**TWO, "ACCELERATE_USE_DEEPSPEED": "true"}, GPU, "by FSDP2 alone"),
    ],
)
def test_other_ways_are_refused(
    said: dict[str, str], device: torch.device, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message):
        check_device(device)


@pytest.mark.parametrize(
    ("said", "device", "sharded"), [({}, CPU, False), (TWO, SECOND, False), (FSDP, SECOND, True), (FSDP, GPU, True)]
)
def test_these_are_not(
    said: dict[str, str], device: torch.device, sharded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    check_device(device)
    assert shards_weights() == sharded


def test_one_process_alone_shares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert not shards_weights()
