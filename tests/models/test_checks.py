"""A model is pruned only with weights that are its own: all of them, from the checkpoint, and numbers."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from torch import Tensor

from encoders import encoder_tokenizer, make_encoder
from harness import validated
from policyprune.commands import doctor
from policyprune.commands import export as exporting
from policyprune.config.schema import Exporting
from policyprune.errors import UsageError
from policyprune.models import loading
from policyprune.models.loading import load, load_as, skeleton

Weights = dict[str, Tensor]


@pytest.fixture
def text() -> Any:
    return validated("task=text", "task.files=[a.txt]")


@pytest.fixture
def sst2() -> Any:
    return validated("task=glue/sst2")


@pytest.fixture
def changed(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tiny model with other weights, or another config."""

    def make(change: Callable[[Weights], Weights] = lambda weights: weights, **config: Any) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(tiny_checkpoint, folder)
        save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
        said = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**said, **config}))
        return folder

    return make


@pytest.fixture
def encoder(tmp_path: Path, tiny_tokenizer: Any) -> Callable[..., Path]:
    def make(head: str, **changes: Any) -> Path:
        tokenizer = encoder_tokenizer(tiny_tokenizer)
        make_encoder(head, vocab_size=len(tokenizer), **changes).save_pretrained(tmp_path / head)
        tokenizer.save_pretrained(tmp_path / head)
        return tmp_path / head

    return make


def at(config: Any, folder: Path, **changes: Any) -> Any:
    return replace(config.model, source=str(folder), device="cpu", **changes)


def prefixed(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


def without(part: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: tensor for name, tensor in weights.items() if part not in name}


def more(name: str) -> Callable[[Weights], Weights]:
    return lambda weights: {**weights, name: torch.ones(4)}


WRONG: list[tuple[str, Callable[[Weights], Weights], dict[str, Any], str]] = [
    ("compiled", prefixed("_orig_mod."), {}, r"30 weights are missing \(.*\), 30 .* not used .*'_orig_mod\.'"),
    ("parallel", prefixed("module."), {}, r"every name has 'module\.' in it"),
    ("a layer is missing", without("layers.1."), {}, r"9 weights are missing \(model\.layers\.1\.input_layernorm"),
    ("no head", without("lm_head"), {}, r"1 weights are missing \(lm_head\.weight\)"),
    ("a bias too many", more("model.layers.0.mlp.up_proj.bias"), {}, r"1 weights are not used \(model\.layers\.0"),
    ("LoRA", more("model.layers.0.self_attn.q_proj.lora_A.weight"), {}, "are not used"),
    ("fewer layers", lambda weights: weights, {"num_hidden_layers": 2}, r"9 weights are not used \(model\.layers\.2"),
    ("more layers", lambda weights: weights, {"num_hidden_layers": 4}, r"9 weights are missing \(model\.layers\.3"),
    (
        "other widths",
        lambda weights: weights,
        {"intermediate_size": 40},
        r"9 weights have another shape \(model\.layers\.0\.mlp",
    ),
    ("no layers", lambda weights: weights, {"num_hidden_layers": 0}, r"num_hidden_layers=0"),
    ("old pruning", lambda weights: weights, {"pruned_heads": {"0": [1]}}, r"pruned_heads"),
]


@pytest.mark.parametrize(("change", "config", "message"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
@pytest.mark.parametrize("early", [True, False])
def test_other_weights_are_refused(
    early: bool, change: Any, config: dict[str, Any], message: str, changed: Any, text: Any
) -> None:
    """Also where only the structure is asked for, before anything is written."""
    folder = changed(change, **config)
    with pytest.raises(UsageError, match=message) as raised:
        (skeleton if early else load)(at(text, folder), text.task)
    assert str(raised.value).startswith(f"model.source: {str(folder)!r}")
    assert "\n" not in str(raised.value)


def test_what_nobody_reads_is_no_fault(changed: Any, text: Any) -> None:
    """Buffers of older versions, and weights of another head."""
    extra = [
        "model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.0.self_attn.masked_bias", "value_head.weight",
    ]  # fmt: skip
    folder = changed(lambda weights: {**weights, **{name: torch.ones(4) for name in extra}})
    skeleton(at(text, folder), text.task)
    load(at(text, folder), text.task)


def test_tied_weights_are_not_missing(tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path, text: Any) -> None:
    tiny_llama(vocab_size=len(tiny_tokenizer), tie_word_embeddings=True).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    load(at(text, tmp_path), text.task)


@pytest.mark.parametrize("head", ["MaskedLM", "QuestionAnswering"])
def test_a_head_that_was_never_trained_is_refused(head: str, encoder: Any, sst2: Any) -> None:
    folder = encoder(head)
    for ask in (skeleton, load):
        with pytest.raises(UsageError, match=r"are missing \(bert\.pooler.*never trained, policyprune finetune"):
            ask(at(sst2, folder), sst2.task)


@pytest.mark.parametrize("head", ["MaskedLM", "QuestionAnswering", "SequenceClassification"])
def test_finetune_may_have_a_new_head(head: str, encoder: Any, sst2: Any) -> None:
    """The head of another task in the checkpoint does not stand in the way, nor one of another number of classes."""
    folder = encoder(head, num_labels=3) if head == "SequenceClassification" else encoder(head)
    model, _ = load(at(sst2, folder), sst2.task, {"num_labels": 2})
    assert model.config.num_labels == 2
    skeleton(at(sst2, folder), sst2.task, {"num_labels": 2})


def test_finetune_may_not_have_a_new_layer(encoder: Any, sst2: Any) -> None:
    folder = encoder("MaskedLM")
    path = folder / "model.safetensors"
    save_file(without("layer.1.")(load_file(path)), path, {"format": "pt"})
    with pytest.raises(UsageError, match=r"16 weights are missing \(bert\.encoder\.layer\.1\."):
        load(at(sst2, folder), sst2.task, {"num_labels": 2})


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused(value: float, changed: Any, text: Any) -> None:
    def broken(weights: Weights) -> Weights:
        weights["model.layers.1.mlp.up_proj.weight"][3, 4:6] = value
        return weights

    with pytest.raises(UsageError, match=r"has 2 NaN or infinite weights in model\.layers\.1\.mlp\.up_proj\.weight"):
        load(at(text, changed(broken)), text.task)


def test_large_weights_are_numbers(changed: Any, text: Any) -> None:
    def large(weights: Weights) -> Weights:
        weights["model.norm.weight"].fill_(3e38)  # their sum is no number of float32
        return weights

    load(at(text, changed(large)), text.task)


@pytest.mark.parametrize(
    ("token", "name"), [("brandnew", None), (AddedToken("<pad2>", special=True), "pad_token")], ids=["word", "padding"]
)
def test_a_token_without_an_embedding_is_refused(token: Any, name: str | None, changed: Any, text: Any) -> None:
    folder = changed()
    tokenizer = loading.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([token])
    if name:
        setattr(tokenizer, name, str(token))
    tokenizer.save_pretrained(folder)
    with pytest.raises(UsageError, match=rf"embedding rows for the {len(tokenizer)} tokens .*{token} would have none"):
        load(at(text, folder), text.task)


def test_a_special_token_that_no_text_has_is_no_fault(changed: Any, text: Any) -> None:
    """As the image token of Gemma 3, which its text models have no row for."""
    folder = changed()
    tokenizer = loading.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken("<image>", special=True)], special_tokens=True)
    tokenizer.save_pretrained(folder)
    load(at(text, folder), text.task)


OWN_CLASS = """
from transformers import LlamaForCausalLM
class Other(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 2
        return out
"""


def test_a_class_of_its_own_is_only_evaluated(changed: Any, text: Any) -> None:
    """It would be written back as the stock class, which computes something else."""
    folder = changed(auto_map={"AutoModelForCausalLM": "modeling_other.Other"})
    (folder / "modeling_other.py").write_text(OWN_CLASS)
    trusted = at(text, folder, trust_remote_code=True)
    for ask in (skeleton, load):
        with pytest.raises(UsageError, match=r"a class of its own \(Other\).* only evaluate takes it"):
            ask(trusted, text.task)
    model, _ = load(trusted, text.task, any_class=True)
    stock, _ = load(at(text, folder), text.task)
    ids = torch.arange(8)[None]
    torch.testing.assert_close(model(ids).logits, 2 * stock(ids).logits)


def test_every_verb_refuses_before_it_writes(changed: Any, text: Any, tmp_path: Path) -> None:
    broken = changed(without("layers.1."))
    wrong = at(text, broken)
    exported = Exporting(model=wrong, format="hf", output=str(tmp_path / "out"))
    with pytest.raises(UsageError, match="9 weights are missing"):
        exporting.export(exported)
    with pytest.raises(UsageError, match="9 weights are missing"):
        doctor.examine(replace(text, model=wrong))
    with pytest.raises(UsageError, match="9 weights are missing"):
        load_as(wrong, loading.AutoModelForCausalLM)
    assert not (tmp_path / "out").exists()
