"""Next-token losses in chunks, and decoders that classify: padding does not change what a text gives."""

import copy
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from encoders import make_encoder, reviews, write_lines
from harness import validated
from policyprune.commands import finetune as finetuning
from policyprune.commands import run as pipeline
from policyprune.config.composition import register
from policyprune.config.registry import conf_dir
from policyprune.config.validate import validate
from policyprune.errors import UsageError
from policyprune.evaluation.accuracy import outputs
from policyprune.models import sequences
from policyprune.models.loading import load
from policyprune.models.sequences import set_padding_token
from policyprune.runs.record import read_record
from policyprune.tasks import build
from policyprune.tasks.classification import ClassificationTask

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48},
    "qwen2": {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48},
    "gpt2": {"n_layer": 2, "n_head": 4},
    "opt": {"num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32},
}


@pytest.mark.parametrize("positions_per_chunk", [1, 5, 1000])
def test_chunks_do_not_change_the_losses(
    tiny_llama: Any, positions_per_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama()
    monkeypatch.setattr(sequences, "CHUNK_ELEMENTS", positions_per_chunk * model.config.vocab_size)
    ids = torch.randint(3, 300, (3, 8))
    losses = sequences.token_losses(model, ids)
    logits = model(ids).logits[:, :-1]
    expected = cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    assert losses.shape == (3, 7)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)


def decoder(family: str, pad: int | None) -> PreTrainedModel:
    """A random decoder with a classifier of two classes."""
    sizes = {"vocab_size": 320, "hidden_size": 32, "max_position_embeddings": 128, "num_labels": 2, **FAMILIES[family]}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **sizes)
    config.pad_token_id = pad
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return model


def saved(folder: Path, model: PreTrainedModel, tokenizer: Any, padding: bool) -> Path:
    tokenizer = copy.deepcopy(tokenizer)
    if not padding:
        tokenizer.pad_token = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def arguments(folder: Path, source: Path, *more: str) -> list[str]:
    files = {
        name: write_lines(folder / f"{name}.jsonl", reviews(24, seed)) for seed, name in enumerate(("train", "dev"))
    }
    return [
        f"model.source={source}",
        "model.name=tiny",
        "model.dtype=float32",
        "task=glue/sst2",
        f"++task.data_files.train={files['train']}",
        f"++task.data_files.validation={files['dev']}",
        "task.calibration.count=16",
        "evaluation.latency.repeats=0",
        *more,
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("pad", "padding"), [(None, True), (None, False), (7, True), (7, False)])
def test_batched_as_alone(tmp_path: Path, tiny_tokenizer: Any, family: str, pad: int | None, padding: bool) -> None:
    """Without a padding token transformers refuses batches; with another one than the tokenizer's it reads padding."""
    source = saved(tmp_path / "tiny", decoder(family, pad), tiny_tokenizer, padding)
    config = validated(*arguments(tmp_path, source))
    model, tokenizer = load(config.model, config.task)
    task = build(config.task, tokenizer)
    assert isinstance(task, ClassificationTask)
    examples = task.tests["validation"].encoded
    assert len(set(examples.lengths.tolist())) > 3
    batched = torch.stack([row[0] for row in outputs(model, examples, ("logits",), 2048)])
    plain = decoder(family, None)
    alone = [plain(examples.tensors["input_ids"][i : i + 1, :n]).logits[0] for i, n in enumerate(examples.lengths)]
    torch.testing.assert_close(batched, torch.stack(alone), rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "written")
    tokenizer.save_pretrained(tmp_path / "written")
    pad_token_id = AutoConfig.from_pretrained(tmp_path / "written").pad_token_id
    assert pad_token_id == AutoTokenizer.from_pretrained(tmp_path / "written").pad_token_id == tokenizer.pad_token_id
    assert pad_token_id is not None


def test_encoders_are_left_alone(tiny_tokenizer: Any) -> None:
    model = make_encoder(num_labels=2)
    before = model.config.pad_token_id
    set_padding_token(model, tiny_tokenizer)
    assert model.config.pad_token_id == before != tiny_tokenizer.pad_token_id


def test_without_any_token_to_pad_with_the_model_is_refused(tiny_tokenizer: Any) -> None:
    bare_tokenizer = copy.deepcopy(tiny_tokenizer)
    bare_tokenizer.pad_token = bare_tokenizer.bos_token = bare_tokenizer.eos_token = bare_tokenizer.unk_token = None
    with pytest.raises(UsageError, match=r"^model\.source: .*neither model nor tokenizer has a padding token"):
        set_padding_token(decoder("llama", None), bare_tokenizer)


def test_a_run_prunes_a_decoder_that_classifies(tmp_path: Path, tiny_tokenizer: Any) -> None:
    source = saved(tmp_path / "tiny", decoder("llama", None), tiny_tokenizer, padding=False)
    more = ["optimizer=one_shot", "importance=fisher", "tuning=none", "budget=params", "budget.keep=0.7"]
    pipeline.run(validated(*arguments(tmp_path, source, *more, "evaluation.one_shot=[]")), tmp_path / "run")
    record = read_record(tmp_path / "run")
    assert record is not None
    values = {row.subject: row.value for row in record.results if row.metric == "cross_entropy"}
    assert values["reloaded"] == pytest.approx(values["pruned"], rel=1e-5)
    assert AutoConfig.from_pretrained(tmp_path / "run" / "checkpoint").pad_token_id is not None


def test_a_decoder_without_a_padding_token_is_fine_tuned_in_batches(tmp_path: Path, tiny_tokenizer: Any) -> None:
    source = saved(tmp_path / "tiny", decoder("llama", None), tiny_tokenizer, padding=False)
    register()
    words = [*arguments(tmp_path, source), "training.epochs=1", "training.batch_size=8"]
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        finetuning.run(validate(hydra.compose("finetune", words)), tmp_path / "run")
    record = read_record(tmp_path / "run")
    assert record is not None
    assert record.status == "finished"
    config = AutoConfig.from_pretrained(tmp_path / "run" / "checkpoint")
    assert config.pad_token_id == AutoTokenizer.from_pretrained(tmp_path / "run" / "checkpoint").pad_token_id
    assert config.id2label == {0: "negative", 1: "positive"}
