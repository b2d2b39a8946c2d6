"""GGUF for llama.cpp: architecture `llama` where all layers are alike, `deci` where they are not; its vocabulary."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.errors import UsageError
from policyprune.models import llama_cpp
from policyprune.models.adapter import Adapter, adapt
from policyprune.storage.files import write_file

KINDS = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
ROW = 32  # numbers that q8_0 packs together
ROTATED = ("attn_q", "attn_k")
HALF_MAX = 65504.0
log = logging.getLogger(__name__)
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {WORDS + r"\p{N}{1,3}" + REST: "llama-bpe", WORDS + r"\p{N}" + REST: "qwen2"}


def check_gguf(model: PreTrainedModel, dtype: str, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """UsageError for what llama.cpp cannot express, of the model and, where it is given, of the tokenizer."""
    if dtype not in KINDS:
        raise UsageError(f"dtype: {dtype!r} is not one of {', '.join(KINDS)}")
    reason = llama_cpp.obstacle(model)
    if reason:
        raise UsageError(f"format: gguf cannot hold this model: {reason}")
    adapter = adapt(model)
    if not any(block.count for block in adapter.blocks if block.kind == "attention"):
        raise UsageError("format: gguf cannot hold a model without any attention")
    if dtype == "q8_0" and (adapter.head_dim % ROW or llama_cpp.hyperparameters(model).width % ROW):
        raise UsageError(f"dtype: q8_0 needs heads and a hidden size in multiples of {ROW}, use f16")
    if tokenizer is not None:
        vocabulary(tokenizer, llama_cpp.hyperparameters(model).vocabulary)


def write_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: Path, dtype: str = "f16") -> None:
    """Write one file with weights and tokenizer; it gets its name when it is whole.

    `dtype` is f32, f16 or q8_0; norms stay f32. A layer's FFN keeps at least one channel and the first layer one
    group, of zeros, where nothing is left: llama.cpp needs them. q8_0 pads FFN widths with zeros to multiples of 32.
    """
    check_gguf(model, dtype, tokenizer)
    adapter = adapt(model)
    layers = [dict(_layer(model, adapter, index, dtype)) for index in range(len(adapter.layers))]
    heads, groups, channels = zip(*(_counts(weights, adapter.head_dim) for weights in layers), strict=True)
    alike = len(set(groups)) == len(set(heads)) == len(set(channels)) == 1
    logging.getLogger("gguf").setLevel(logging.WARNING)
    with write_file(file) as scratch:
        sizes = llama_cpp.hyperparameters(model)
        writer = gguf.GGUFWriter(scratch, "llama" if alike else "deci", use_temp_file=True)
        writer.add_name(file.stem)
        writer.add_file_type(KINDS[dtype][1])
        writer.add_block_count(len(layers))
        writer.add_context_length(sizes.context_length)
        writer.add_embedding_length(sizes.width)
        writer.add_head_count(heads[0] if alike else list(heads))
        writer.add_head_count_kv(groups[0] if alike else list(groups))
        writer.add_feed_forward_length(channels[0] if alike else list(channels))
        writer.add_key_length(adapter.head_dim)
        writer.add_value_length(adapter.head_dim)
        writer.add_rope_dimension_count(adapter.head_dim)
        writer.add_rope_freq_base(sizes.rope_base)
        writer.add_layer_norm_rms_eps(sizes.norm_epsilon)
        writer.add_vocab_size(sizes.vocabulary)
        write_vocabulary(writer, tokenizer, sizes.vocabulary)
        factors = llama_cpp.rope_factors(model, adapter.head_dim)
        top = {**llama_cpp.top_weights(model), **({"rope_freqs": factors} if factors is not None else {})}
        for name, weight in top.items():
            _add(writer, f"{name}.weight", weight, dtype)
        for index, weights in enumerate(layers):
            for name, weight in weights.items():
                _add(writer, f"blk.{index}.{name}.weight", weight, dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _layer(model: PreTrainedModel, adapter: Adapter, index: int, dtype: str) -> Iterator[tuple[str, Tensor]]:
    """Names and weights of a layer, with the zeros that llama.cpp needs."""
    layer = model.get_submodule(adapter.layers[index])
    counts = {block.kind: block.count for block in adapter.blocks if block.layer == index}
    width = llama_cpp.hyperparameters(model).width
    if counts["attention"]:
        yield llama_cpp.norm_weight(layer, "attention")
        for name, weight in llama_cpp.block_weights(layer, "attention").items():
            yield name, _rotated(weight, adapter.head_dim) if name in ROTATED else weight
    elif index == 0:  # llama.cpp takes the size of a head from here
        yield llama_cpp.norm_weight(layer, "attention")
        for name in llama_cpp.ATTENTION.values():
            yield name, torch.zeros((width, adapter.head_dim) if name == "attn_output" else (adapter.head_dim, width))
    yield llama_cpp.norm_weight(layer, "ffn")
    channels = counts["ffn"]
    padded = max(1, channels) if dtype != "q8_0" else max(ROW, -(-channels // ROW) * ROW)
    weights = llama_cpp.block_weights(layer, "ffn") if channels else {}
    for name in llama_cpp.FFN.values():
        dimension = 1 if name == "ffn_down" else 0
        weight = weights.get(name, torch.zeros((width, 0) if dimension else (0, width)))
        zeros = weight.new_zeros((width, padded - channels) if dimension else (padded - channels, width))
        yield name, torch.cat([weight, zeros], dimension) if padded > channels else weight


def _counts(weights: dict[str, Tensor], head_dim: int) -> tuple[int, int, int]:
    """Query heads, key/value heads and channels of a layer, from the weights that are written."""
    heads = weights["attn_q"].shape[0] // head_dim if "attn_q" in weights else 0
    groups = weights["attn_k"].shape[0] // head_dim if "attn_k" in weights else 0
    return heads, groups, weights["ffn_up"].shape[0]


def _rotated(weight: Tensor, head_dim: int) -> Tensor:
    """Rows (heads * head_dim, d) in llama.cpp's order: it rotates neighbours, transformers the halves of a head."""
    heads = weight.shape[0] // head_dim
    return weight.reshape(heads, 2, head_dim // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _add(writer: gguf.GGUFWriter, name: str, weight: Tensor, dtype: str) -> None:
    values: np.ndarray = weight.detach().float().cpu().contiguous().numpy()
    if values.ndim == 1:
        writer.add_tensor(name, values)
        return
    if dtype == "f16" and float(np.abs(values).max()) > HALF_MAX:
        raise UsageError(f"dtype: f16 cannot hold {name}, use f32")
    kind = KINDS[dtype][0]
    writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp needs to tokenise: `model` is gpt2 (byte-level BPE) or llama (SentencePiece's BPE)."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float] | None
    space_prefix: bool


def vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> Vocabulary:
    """The tokens of the `size` rows of an embedding, those that the tokenizer lacks as unused ones.

    UsageError for a kind llama.cpp lacks, and for tokens without a row that a text can hold.
    """
    if not tokenizer.is_fast:
        raise UsageError(f"format: gguf takes fast tokenizers, this is {type(tokenizer).__name__}")
    stated = json.loads(tokenizer.backend_tokenizer.to_str())
    model = stated["model"]
    if model["type"] != "BPE":
        raise UsageError(f"format: gguf takes tokenizers of byte-pair encoding, this is {model['type']}")
    by_id = {index: token for token, index in model["vocab"].items()}
    added = {token["id"]: token for token in stated["added_tokens"]}
    by_id |= {index: token["content"] for index, token in added.items()}
    _check_rows(tokenizer, by_id, added, size)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(size)]
    types = [_type(index, by_id, added, model) for index in range(size)]
    if model.get("byte_fallback"):
        return Vocabulary("llama", "default", tokens, types, merges, _scores(tokens, merges), _space_prefix(stated))
    return Vocabulary("gpt2", _pre_tokenizer(stated), tokens, types, merges, None, False)


def write_vocabulary(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """Tokens, merges, special ids and chat template."""
    words = vocabulary(tokenizer, size)
    by_id = sorted((index, token) for token, index in tokenizer.get_vocab().items())
    lost = [token for index, token in by_id if index >= size]
    if lost:
        log.warning("format: gguf leaves out %s, for which the model has no embedding", ", ".join(map(repr, lost[:5])))
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    if words.scores is not None:
        writer.add_token_scores(words.scores)
    writer.add_token_merges(words.merges)
    for name in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None and index < size:
            getattr(writer, f"add_{name}_token_id")(index)
    encoded = tokenizer("a")["input_ids"]
    assert isinstance(encoded, list)
    writer.add_add_bos_token(bool(encoded) and encoded[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(bool(encoded) and encoded[-1] == tokenizer.eos_token_id)
    writer.add_add_space_prefix(words.space_prefix)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _check_rows(tokenizer: PreTrainedTokenizerBase, by_id: dict[int, str], added: dict[int, Any], size: int) -> None:
    """UsageError where a token that texts are made of has no row; a padding token, say, is only left out."""
    needed = {getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk")}
    lost = [i for i in sorted(by_id) if i >= size and (i in needed or i not in added or not added[i]["special"])]
    if lost:
        raise UsageError(
            f"format: gguf would lose {len(lost)} tokens, the first is {by_id[lost[0]]!r}: the tokenizer has "
            f"{len(by_id)} and the model's embedding {size} rows; give the model a tokenizer of its size"
        )


def _type(index: int, by_id: dict[int, str], added: dict[int, Any], model: dict[str, Any]) -> int:
    if index not in by_id:
        return gguf.TokenType.UNUSED
    if by_id[index] == model.get("unk_token") and model.get("byte_fallback"):
        return gguf.TokenType.UNKNOWN
    if index in added:
        return gguf.TokenType.CONTROL if added[index]["special"] else gguf.TokenType.USER_DEFINED
    is_byte = model.get("byte_fallback") and by_id[index].startswith("<0x") and len(by_id[index]) == 6
    return gguf.TokenType.BYTE if is_byte else gguf.TokenType.NORMAL


def _pre_tokenizer(stated: dict[str, Any]) -> str:
    """llama.cpp's name of how text is split before byte-pair encoding."""
    normalizer, pre = stated["normalizer"], stated["pre_tokenizer"] or {}
    steps = pre["pretokenizers"] if pre.get("type") == "Sequence" else [pre]
    kinds = [step.get("type") for step in steps]
    plain = normalizer is None or normalizer.get("type") == "NFC"
    if plain and kinds[-1] == "ByteLevel" and not steps[-1]["add_prefix_space"]:
        splits_words = steps[-1].get("use_regex", True)
        if kinds == ["ByteLevel"] and splits_words and normalizer is None:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and splits_words and steps[0]["individual_digits"] and normalizer is None:
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not splits_words:
            name = SPLITS.get(steps[0]["pattern"].get("Regex", ""))
            if name is not None:
                return name
    raise UsageError(f"format: gguf has no name for this tokenizer's way to split text ({', '.join(map(str, kinds))})")


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """SentencePiece merges the pair whose token has the highest score: the earlier its merge, the higher."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault(pair.replace(" ", "", 1), rank)
    return [-float(ranks[token]) if token in ranks else -1e6 for token in tokens]


def _space_prefix(stated: dict[str, Any]) -> bool:
    """Whether a space is put before the text."""
    text = json.dumps([stated["normalizer"], stated["pre_tokenizer"]])
    return '"Prepend"' in text or '"prepend_scheme": "first"' in text or '"prepend_scheme": "always"' in text
