"""Loading a model from a folder, and the device and dtype it is held in."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from policyprune.config.schema import LanguageModeling, Model
from policyprune.errors import UsageError
from policyprune.models.loading import device_of, load

TEXT = LanguageModeling(name="text")
CPU = Model(
    name="tiny",
    source="./nowhere",
    revision=None,
    device="cpu",
    dtype="auto",
    attn_implementation="sdpa",
    device_map=None,
    trust_remote_code=False,
)


def test_auto_takes_the_gpu_where_there_is_one() -> None:
    wanted = "cuda" if torch.cuda.is_available() else "cpu"
    assert device_of(replace(CPU, device="auto")).type == wanted


@pytest.mark.parametrize("device", ["cuda:63", "toaster"])
def test_a_device_that_is_not_there_is_an_error(device: str) -> None:
    with pytest.raises(UsageError, match=rf"model\.device: '{device}' .*auto or cpu"):
        device_of(replace(CPU, device=device))


def test_a_folder_is_loaded_as_asked(tiny_checkpoint: Path) -> None:
    model, tokenizer = load(
        replace(CPU, source=str(tiny_checkpoint), dtype="bfloat16", attn_implementation="eager"), TEXT
    )
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert tokenizer.decode(tokenizer("lazy dog")["input_ids"]) == "lazy dog"


def test_the_weights_are_those_of_the_folder(tiny_checkpoint: Path, tiny_llama: Any, tiny_tokenizer: Any) -> None:
    model, _ = load(replace(CPU, source=str(tiny_checkpoint)), TEXT)
    ids = torch.randint(3, 300, (2, 9))
    expected = tiny_llama(vocab_size=len(tiny_tokenizer))(ids).logits
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("source", ["/no/such/folder", "no-such-owner-here/no-such-model-here"])
def test_a_model_that_is_not_there_is_an_error_of_one_line(source: str) -> None:
    with pytest.raises(UsageError, match=r"model\.source") as raised:
        load(replace(CPU, source=source), TEXT)
    assert "\n" not in str(raised.value)


def test_an_empty_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.source: .*holds no config\.json"):
        load(replace(CPU, source=str(tmp_path)), TEXT)
