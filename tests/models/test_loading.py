"""Loading a model from a folder, and the device and dtype it is held in."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from harness import validated
from policyprune.commands.doctor import examine
from policyprune.config.schema import Classification, LanguageModeling, Model
from policyprune.errors import UsageError
from policyprune.models.examples import example
from policyprune.models.loading import load, skeleton
from policyprune.surgery.plan import base_of

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


@pytest.mark.parametrize(("family", "resolved"), [("llama", "sdpa"), ("gemma2", "eager")])
def test_auto_takes_the_attention_that_a_model_has(
    family: str, resolved: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    example(family).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    wanted = replace(CPU, source=str(tmp_path), attn_implementation="auto")
    assert skeleton(wanted, TEXT).config._attn_implementation == resolved
    model, _ = load(wanted, TEXT)
    assert model.config._attn_implementation == resolved
    assert base_of(model, str(tmp_path), None, "text").attention == resolved
    assert model(torch.arange(4)[None]).logits.isfinite().all()


def test_attention_that_a_model_has_not_is_refused_alike(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """The doctor says what a run would."""
    example("gemma2").save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    config = validated("model.attn_implementation=sdpa", "model.device=cpu", f"model.source={tmp_path}")
    for ask in (lambda: skeleton(config.model, TEXT), lambda: load(config.model, TEXT), lambda: examine(config)):
        with pytest.raises(UsageError, match=r"^model\.attn_implementation: 'sdpa' .* use auto"):
            ask()


def test_what_is_missing_is_told_once_and_in_one_line(tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without the table that transformers prints."""
    transformers.logging.set_verbosity_warning()
    with pytest.raises(UsageError, match="weights are missing"):
        load(replace(CPU, source=str(tiny_checkpoint)), Classification(name="x", text_columns=["text"], classes=2))
    assert "LOAD REPORT" not in caplog.text


def test_a_config_that_says_tied_where_the_weights_are_not_is_mended(
    tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever trusts the config would load another model than the one that was measured."""
    tiny_llama(vocab_size=len(tiny_tokenizer), tie_word_embeddings=False).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**stated, "tie_word_embeddings": True}))
    config = validated("task=text", "task.files=[a.txt]", f"model.source={tmp_path}", "model.device=cpu")
    model, _ = load(config.model, config.task)
    assert model.config.tie_word_embeddings is False
    assert not torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)
    ours = [record for record in caplog.records if record.levelname == "WARNING"]
    assert [record.name for record in ours] == ["policyprune.models.loading"]
    assert "tie_word_embeddings" in ours[0].getMessage()


def test_files_of_a_tokenizer_that_are_missing_are_told(tiny_llama: Any, tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    config = validated("task=text", "task.files=[a.txt]", f"model.source={tmp_path}", "model.device=cpu")
    with pytest.raises(UsageError, match=r"cannot be loaded: .*tokenizer.*[^:]$"):
        load(config.model, config.task)
