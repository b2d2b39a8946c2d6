"""GGUF files hold the model that was given: read back by gguf-py and, where all layers are alike, by transformers."""

import copy
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from encoders import make_encoder
from policyprune.errors import UsageError
from policyprune.models.adapter import adapt
from policyprune.models.loading import converted
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import space_of
from policyprune.surgery.gguf import check_gguf, vocabulary, write_gguf
from policyprune.surgery.shrink import shrink

HEAD = 32


def pruned(model: Any, groups: list[int], channels: list[int]) -> Any:
    """Keep the first units of each layer, as many as listed."""
    adapter = adapt(model)
    space = space_of(adapter, ["attention", "ffn"])
    mask = torch.zeros(space.n)
    for (layer, kind), view in space.views(mask).items():
        view[: (groups if kind == "attention" else channels)[layer]] = 1
    return shrink(PrunableModel(model, adapter, space), mask)


def fields(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    reader = gguf.GGUFReader(str(path))
    return {name: own.contents() for name, own in reader.fields.items()}, {own.name: own for own in reader.tensors}


def transformers_rows(weight: np.ndarray) -> np.ndarray:
    """Rows of q or k back in the order of transformers."""
    rows, width = weight.shape
    return weight.reshape(rows // HEAD, HEAD // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


@pytest.fixture
def dense(tiny_llama: Any, tiny_tokenizer: Any) -> Any:
    return tiny_llama(vocab_size=len(tiny_tokenizer) + 3, head_dim=HEAD)


def test_unequal_layers_are_stated_one_by_one(dense: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    model = pruned(dense, [3, 0, 1], [20, 48, 0])
    write_gguf(model, tiny_tokenizer, tmp_path / "m.gguf", "f32")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    stated, tensors = fields(tmp_path / "m.gguf")
    assert stated["general.architecture"] == "deci"
    assert stated["deci.attention.head_count"] == [6, 0, 2]
    assert stated["deci.attention.head_count_kv"] == [3, 0, 1]
    assert stated["deci.feed_forward_length"] == [20, 48, 1]
    assert stated["deci.attention.key_length"] == stated["deci.rope.dimension_count"] == HEAD
    assert not [name for name in tensors if name.startswith("blk.1.attn")]
    assert not tensors["blk.2.ffn_up.weight"].data.any()
    layer = model.model.layers[0]
    assert np.array_equal(transformers_rows(tensors["blk.0.attn_q.weight"].data), layer.self_attn.q_proj.weight.numpy())
    assert np.array_equal(transformers_rows(tensors["blk.0.attn_k.weight"].data), layer.self_attn.k_proj.weight.numpy())
    assert np.array_equal(tensors["blk.0.attn_v.weight"].data, layer.self_attn.v_proj.weight.numpy())
    assert np.array_equal(tensors["blk.0.ffn_down.weight"].data, layer.mlp.down_proj.weight.numpy())
    assert np.array_equal(tensors["output.weight"].data, model.lm_head.weight.numpy())


def test_the_first_layer_keeps_a_head_of_zeros(dense: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    write_gguf(pruned(dense, [0, 2, 2], [8, 8, 8]), tiny_tokenizer, tmp_path / "m.gguf", "f32")
    stated, tensors = fields(tmp_path / "m.gguf")
    assert stated["deci.attention.head_count"] == [1, 4, 4]
    assert tensors["blk.0.attn_output.weight"].data.shape == (64, HEAD)
    assert not tensors["blk.0.attn_output.weight"].data.any()


@pytest.mark.parametrize("tied", [True, False])
def test_equal_layers_load_as_a_llama(
    tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    monkeypatch.setenv("POLICYPRUNE_CACHE", str(tmp_path / "cache"))
    dense = tiny_llama(vocab_size=len(tiny_tokenizer), head_dim=HEAD, tie_word_embeddings=tied)
    model = pruned(dense, [2, 2, 2], [20, 20, 20])
    write_gguf(model, tiny_tokenizer, tmp_path / "m.gguf", "f32")
    stated, tensors = fields(tmp_path / "m.gguf")
    assert stated["general.architecture"] == "llama"
    assert ("output.weight" in tensors) != tied
    back = AutoModelForCausalLM.from_pretrained(converted(tmp_path / "m.gguf"))
    ids = torch.randint(3, len(tiny_tokenizer), (2, 9))
    torch.testing.assert_close(back(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-3)
    text = "the dog's mask of 123 zeros"
    again = AutoTokenizer.from_pretrained(converted(tmp_path / "m.gguf"))
    assert again(text, add_special_tokens=False)["input_ids"] == tiny_tokenizer(text)["input_ids"]


def test_half_and_eight_bits(dense: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    model = pruned(dense, [3, 0, 1], [20, 48, 0])
    weight = model.model.layers[0].mlp.down_proj.weight.numpy()
    write_gguf(model, tiny_tokenizer, tmp_path / "f16.gguf", "f16")
    _, half = fields(tmp_path / "f16.gguf")
    assert np.array_equal(half["blk.0.ffn_down.weight"].data, weight.astype(np.float16))
    assert half["blk.0.ffn_norm.weight"].data.dtype == np.float32
    write_gguf(model, tiny_tokenizer, tmp_path / "q8.gguf", "q8_0")
    stated, packed = fields(tmp_path / "q8.gguf")
    assert stated["deci.feed_forward_length"] == [32, 64, 32]  # multiples of 32
    own = packed["blk.0.ffn_down.weight"]
    assert own.tensor_type == gguf.GGMLQuantizationType.Q8_0
    values = gguf.quants.dequantize(own.data, own.tensor_type)
    assert np.abs(values[:, :20] - weight).max() <= np.abs(weight).max() / 127
    assert not values[:, 20:].any()


def test_the_tokenizer_is_told_in_full(dense: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    write_gguf(dense, tiny_tokenizer, tmp_path / "m.gguf")
    stated, _ = fields(tmp_path / "m.gguf")
    count = len(tiny_tokenizer)
    assert stated["tokenizer.ggml.model"] == "gpt2"
    assert stated["tokenizer.ggml.pre"] == "gpt-2"
    assert stated["tokenizer.ggml.tokens"][:count] == tiny_tokenizer.convert_ids_to_tokens(range(count))
    assert stated["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]
    assert stated["tokenizer.ggml.token_type"][count:] == [5, 5, 5]  # rows of the embedding without a token
    assert (stated["tokenizer.ggml.bos_token_id"], stated["tokenizer.ggml.eos_token_id"]) == (0, 1)
    assert stated["tokenizer.ggml.add_bos_token"] is False


@pytest.mark.parametrize("rows", [-3, 0, 5], ids=["fewer rows", "as many", "more rows"])
def test_any_number_of_rows_gives_a_file_that_transformers_loads(
    tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, rows: int
) -> None:
    """Three special tokens, padding among them, are added to a tokenizer after the model was made for it."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    count = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<later>", "additional_special_tokens": ["<x>", "<y>"]})
    model = tiny_llama(vocab_size=count + 3 + rows, head_dim=HEAD)
    write_gguf(model, tokenizer, tmp_path / "m.gguf", "f32")
    stated, tensors = fields(tmp_path / "m.gguf")
    size = len(stated["tokenizer.ggml.tokens"])
    assert size == stated["llama.vocab_size"] == len(tensors["token_embd.weight"].data) == model.config.vocab_size
    assert len(set(stated["tokenizer.ggml.tokens"])) == size
    assert all(value < size for name, value in stated.items() if name.endswith("_token_id"))
    assert ("tokenizer.ggml.padding_token_id" in stated) == (rows >= 0)
    told = [line for line in caplog.messages if "leaves out" in line]
    assert told == ["format: gguf leaves out '<later>', '<x>', '<y>', for which the model has no embedding"] * (
        rows < 0
    )
    back = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf")
    ids = torch.randint(3, count, (2, 9))
    torch.testing.assert_close(back(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-3)
    again = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    text = "the dog's mask of 123 zeros"
    assert again(text, add_special_tokens=False)["input_ids"] == tokenizer(text)["input_ids"]


def test_tokens_of_texts_without_a_row_are_refused(tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    model = tiny_llama(vocab_size=len(tiny_tokenizer) - 2, head_dim=HEAD)
    with pytest.raises(UsageError, match=r"would lose 2 tokens, the first is .* embedding \d+ rows"):
        write_gguf(model, tiny_tokenizer, tmp_path / "m.gguf", "f32")
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    with pytest.raises(UsageError, match="would lose 1 tokens, the first is '<end>'"):
        check_gguf(tiny_llama(vocab_size=len(tiny_tokenizer), head_dim=HEAD), "f32", tokenizer)
    assert not list(tmp_path.iterdir())


def wrapped(model: Any, pre: Any) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_ways_to_split_text_have_names() -> None:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    assert vocabulary(wrapped(models.BPE(vocab={"a": 0}, merges=[]), digits), 1).pre == "smollm"
    with pytest.raises(UsageError, match=r"way to split text \(Whitespace\)"):
        vocabulary(wrapped(models.BPE(vocab={"a": 0}, merges=[]), pre_tokenizers.Whitespace()), 1)
    with pytest.raises(UsageError, match="byte-pair encoding, this is WordLevel"):
        vocabulary(wrapped(models.WordLevel(vocab={"a": 0}, unk_token="a"), byte_level), 1)


def test_a_sentencepiece_vocabulary_gets_scores_by_its_merges() -> None:
    tokens = {"<unk>": 0, "<0x0A>": 1, "a": 2, "b": 3, "ab": 4, "abb": 5}
    model = models.BPE(vocab=tokens, merges=[("a", "b"), ("ab", "b")], unk_token="<unk>", byte_fallback=True)
    own = vocabulary(wrapped(model, pre_tokenizers.Metaspace(prepend_scheme="first")), 6)
    assert (own.model, own.space_prefix) == ("llama", True)
    assert own.types == [2, 6, 1, 1, 1, 1]
    assert own.scores is not None
    assert own.scores[4] > own.scores[5] > own.scores[2]


@pytest.mark.parametrize(
    ("changes", "dtype", "reason"),
    [
        ({"attention_bias": True}, "f16", "biases of the projections"),
        ({"hidden_act": "gelu"}, "f16", "gated by silu, the model's by gelu"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "f16", "type 'dynamic'"),
        ({}, "q4_0", "'q4_0' is not one of f32, f16, q8_0"),
        ({"head_dim": 16}, "q8_0", "multiples of 32"),
    ],
)
def test_what_llama_cpp_cannot_express_is_refused(
    tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path, changes: dict[str, Any], dtype: str, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        write_gguf(tiny_llama(**changes), tiny_tokenizer, tmp_path / "new" / "m.gguf", dtype)
    assert not list(tmp_path.iterdir())


def test_other_models_are_refused(dense: Any) -> None:
    with pytest.raises(UsageError, match="language models of type llama or mistral, this is BertFor"):
        check_gguf(make_encoder(), "f16")
    with pytest.raises(UsageError, match="without any attention"):
        check_gguf(pruned(dense, [0, 0, 0], [8, 8, 8]), "f16")


def test_numbers_too_large_for_half_are_refused(dense: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    dense.model.layers[1].mlp.up_proj.weight[0, 0] = 1e5
    with pytest.raises(UsageError, match="f16 cannot hold blk"):
        write_gguf(dense, tiny_tokenizer, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())
