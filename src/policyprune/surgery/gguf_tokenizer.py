"""A Hugging Face tokenizer in the words of a GGUF file."""

import json
import logging
from dataclasses import dataclass
from typing import Any

import gguf
from transformers import PreTrainedTokenizerBase

from policyprune.errors import UsageError

log = logging.getLogger(__name__)

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {WORDS + r"\p{N}{1,3}" + REST: "llama-bpe", WORDS + r"\p{N}" + REST: "qwen2"}


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
