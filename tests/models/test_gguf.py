"""GGUF files: a tiny one is written here, converted once, and computes what the model it came from computes."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from policyprune.config.schema import LanguageModeling, Model
from policyprune.errors import UsageError
from policyprune.models import loading as conversion
from policyprune.models.loading import load
from policyprune.storage.sources import check_source, locate_model

MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of q or k in the order that GGUF wants for rotary embeddings."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(weight.shape)


def tensor_of(name: str, value: Tensor, config: Any) -> tuple[str, np.ndarray]:
    module = name.removesuffix(".weight")
    if module in TOP:
        return f"{TOP[module]}.weight", value.numpy()
    _, _, layer, inside = module.split(".", 3)
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
    if inside in heads:
        value = interleaved(value, heads[inside])
    return f"blk.{layer}.{MODULES[inside]}.weight", value.numpy()


def write_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any) -> None:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)


def write_gguf(path: Path, model: Any, tokenizer: Any) -> None:
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    write_tokenizer(writer, tokenizer)
    for name, value in model.state_dict().items():
        writer.add_tensor(*tensor_of(name, value, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLICYPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


@pytest.fixture
def dense(tiny_llama: Any, tiny_tokenizer: Any) -> Any:
    return tiny_llama(num_hidden_layers=1, vocab_size=len(tiny_tokenizer))


@pytest.fixture
def file(tmp_path: Path, dense: Any, tiny_tokenizer: Any) -> Path:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, dense, tiny_tokenizer)
    return path


def test_a_gguf_file_loads_as_the_model_it_was_made_from(
    file: Path, cache: Path, dense: Any, tiny_tokenizer: Any
) -> None:
    config = Model(
        name="tiny",
        source=str(file),
        revision=None,
        device="cpu",
        dtype="float32",
        attn_implementation="eager",
        device_map=None,
        trust_remote_code=False,
    )
    model, tokenizer = load(config, LanguageModeling(name="text"))
    text = "The lazy dog does not mind."
    ids = torch.tensor([tiny_tokenizer(text)["input_ids"]])
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids[0].tolist()
    torch.testing.assert_close(model(ids).logits, dense(ids).logits, rtol=1e-3, atol=1e-3)


def in_parts(file: Path, count: int) -> list[Path]:
    content = file.read_bytes()
    size = -(-len(content) // count)
    parts = [file.with_name(f"{file.name}.part{number:02d}") for number in range(count)]
    for number, part in enumerate(parts):
        part.write_bytes(content[number * size : (number + 1) * size])
    return parts


@pytest.mark.parametrize("count", [2, 3, 11])
def test_a_file_in_parts_is_joined_once(file: Path, cache: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = in_parts(file, count)
    source = "\n ".join(map(str, parts))
    check_source(source)
    assert not cache.with_name("joined").exists()
    whole = locate_model(source)
    assert whole is not None
    assert whole.read_bytes() == file.read_bytes()
    assert whole.suffix == ".gguf"
    before = whole.stat().st_mtime_ns
    assert locate_model(source) == whole
    assert whole.stat().st_mtime_ns == before
    parts[-1].write_bytes(b"other")
    changed = locate_model(source)
    assert changed != whole


def test_a_file_in_parts_loads_as_the_whole_one(file: Path, cache: Path, dense: Any) -> None:
    source = " ".join(map(str, in_parts(file, 3)))
    model, _ = load(Model(name="tiny", source=source, device="cpu", dtype="float32"), LanguageModeling(name="text"))
    ids = torch.randint(5, 250, (2, 12))
    torch.testing.assert_close(model(ids).logits, dense(ids).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("lost", "reason"),
    [("{}.part01", r"part01' does not exist"), ("pkg://no_such_package_here/{}.part01", "needs the package 'no_such")],
)
def test_a_missing_part_is_named(file: Path, cache: Path, lost: str, reason: str) -> None:
    first, second = in_parts(file, 2)
    second.unlink()
    source = f"{first} {lost.format(file if '://' not in lost else file.name)}"
    for ask in (check_source, locate_model):
        with pytest.raises(UsageError, match=f"model.source: .*{reason}"):
            ask(source)
    assert not cache.with_name("joined").exists()


def test_a_file_is_converted_once(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = conversion.converted(file)
    assert list(cache.iterdir()) == [first]
    assert (first / "config.json").is_file()

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("converted twice")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", never)
    assert conversion.converted(file) == first


def test_a_changed_file_is_converted_again(file: Path, cache: Path, dense: Any, tiny_tokenizer: Any) -> None:
    first = conversion.converted(file)
    write_gguf(file, dense, tiny_tokenizer)
    assert conversion.converted(file) != first
    assert len(list(cache.iterdir())) == 2


def test_a_failed_conversion_leaves_nothing_behind(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("policyprune.models.loading.AutoTokenizer.from_pretrained", fails)
    with pytest.raises(OSError, match="disk full"):
        conversion.converted(file)
    assert list(cache.iterdir()) == []


def test_whoever_loses_the_race_takes_what_the_winner_made(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several at once on a fresh machine: one converts, the others wait for it."""
    made = []
    slow = conversion._convert

    def counted(source: Path, target: Path) -> None:
        made.append(target)
        time.sleep(0.3)
        slow(source, target)

    monkeypatch.setattr(conversion, "_convert", counted)
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(conversion.converted, [file] * 4))
    assert len(made) == 1
    assert {*folders} == {*made} == {*cache.iterdir()}
    assert not list((cache.parent / "locks").iterdir())


def test_weights_that_the_file_lacks_are_refused(
    tmp_path: Path, cache: Path, dense: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {name: value for name, value in dense.state_dict().items() if "up_proj" not in name}
    monkeypatch.setattr(dense, "state_dict", lambda: state)
    write_gguf(tmp_path / "less.gguf", dense, tiny_tokenizer)
    with pytest.raises(UsageError, match=r"less\.gguf' .* 1 weights are missing \(model\.layers\.0\.mlp\.up_proj"):
        conversion.converted(tmp_path / "less.gguf")
    assert not list(cache.iterdir())
