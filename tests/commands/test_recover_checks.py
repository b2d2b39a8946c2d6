"""What a run would need of a GPU is known before its search."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness import validated
from policyprune.commands import checks
from policyprune.config.schema import Trained
from policyprune.errors import UsageError


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "device_of", lambda config: torch.device("cuda"))
    monkeypatch.setattr(checks, "dtype_of", lambda config, device: torch.bfloat16)
    monkeypatch.setattr(checks, "computes_in_bfloat16", lambda choice, device: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80_000_000_000)
    )


def check(*overrides: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = validated(*overrides)
    seven: dict[str, Any] = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**seven, num_attention_heads=32))
    assert isinstance(config.recovery, Trained)
    checks.check_memory(config, config.recovery, model)


@pytest.mark.parametrize(
    "fitting", [["recovery=distill", "budget.keep=0.5"], ["recovery=lora", "budget.keep=0.8"]], ids=str
)
def test_what_fits_goes_on(fitting: list[str], gpu: None) -> None:
    check(*fitting)


def test_what_does_not_fit_is_refused_with_what_would(gpu: None) -> None:
    with pytest.raises(UsageError) as refused:
        check("recovery=distill", "budget.keep=0.8")
    assert str(refused.value) == (
        "recovery: distill needs 87.1 GB of the GPU beside the models that are in it, and 56.2 GB are free; use "
        "recovery=lora, which needs 18.7 GB"
    )
    with pytest.raises(UsageError, match=r"use recovery.trained=blocks, which needs"):
        check("recovery=finetune", "budget.keep=0.55")


def test_a_cpu_has_what_it_needs() -> None:
    check("recovery=distill", "budget.keep=0.8", "model.device=cpu")
