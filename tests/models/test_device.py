"""On which device a model is held, in which dtype, and in which one it is searched."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from policyprune.config.schema import Model
from policyprune.errors import UsageError
from policyprune.models.device import device_of, dtype_of, in_search_dtype, search_dtype_of

CPU = Model(name="tiny", source="nowhere", device="cpu")
CPU_DEVICE, GPU = torch.device("cpu"), torch.device("cuda")


def test_auto_takes_the_gpu_where_there_is_one() -> None:
    wanted = "cuda" if torch.cuda.is_available() else "cpu"
    assert device_of(replace(CPU, device="auto")).type == wanted


@pytest.mark.parametrize("device", ["cuda:63", "toaster"])
def test_a_device_that_is_not_there_is_an_error(device: str) -> None:
    with pytest.raises(UsageError, match=rf"model\.device: '{device}' .*auto or cpu"):
        device_of(replace(CPU, device=device))


def test_auto_is_float32_on_a_cpu() -> None:
    assert dtype_of(CPU, CPU_DEVICE) == torch.float32


@pytest.mark.parametrize(("has_bfloat16", "wanted"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_is_the_half_precision_that_a_gpu_has(
    has_bfloat16: bool, wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bfloat16)
    assert dtype_of(CPU, GPU) == wanted


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_named_dtype_is_taken(name: str) -> None:
    assert dtype_of(replace(CPU, dtype=name), CPU_DEVICE) == getattr(torch, name)


@pytest.mark.parametrize(("native", "wanted"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_search_on_a_processor_takes_bfloat16_where_it_is_native(
    native: bool, wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("policyprune.models.device._multiplies_bfloat16", lambda: native)
    assert search_dtype_of("auto", torch.float32, CPU_DEVICE) == wanted


def test_a_search_keeps_the_dtype_of_weights_on_a_gpu_and_of_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policyprune.models.device._multiplies_bfloat16", lambda: True)
    assert search_dtype_of("auto", torch.float32, GPU) == torch.float32
    assert search_dtype_of("auto", torch.float16, CPU_DEVICE) == torch.float16


def test_the_searched_copy_has_other_weights_and_the_same_buffers(tiny_llama: Any) -> None:
    model = tiny_llama()
    searched = in_search_dtype(model, "bfloat16")
    assert searched.dtype == torch.bfloat16
    assert model.dtype == torch.float32
    assert searched.model.rotary_emb.inv_freq.dtype == torch.float32
    ids = torch.arange(12)[None]
    torch.testing.assert_close(searched(ids).logits.float(), model(ids).logits, rtol=0.05, atol=0.05)


def test_no_copy_is_made_where_the_dtype_is_the_same(tiny_llama: Any) -> None:
    model = tiny_llama()
    assert in_search_dtype(model, "float32") is model
