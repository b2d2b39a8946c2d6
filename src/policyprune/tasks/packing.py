"""Sequences for next-token prediction, from texts, from token ids and from tensors."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.errors import UsageError
from policyprune.models.sequences import token_losses

SEPARATOR = "\n\n"
BATCH = 64  # texts that are tokenised at a time


@dataclass(frozen=True)
class Sequences:
    """Calibration sequences of one length, `ids` (N, L) int64: a `Task` for the search."""

    ids: Tensor
    protocol: dict[str, Any] = field(default_factory=dict)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each sequence, all the same, (N,) int64."""
        return torch.full((len(self.ids),), self.ids.shape[1])

    def inputs(self, rows: Tensor) -> dict[str, Tensor]:
        """Arguments of the model's forward: rows (B,)."""
        return {"input_ids": self.ids[rows]}

    def loss(self, model: PreTrainedModel, rows: Tensor) -> Tensor:
        """Mean next-token loss of each sequence: rows (B,) -> (B,) float32 on the model's device."""
        return token_losses(model, self.ids[rows].to(model.device, non_blocking=True)).mean(-1)


def sequences(
    data: Sequence[str] | Sequence[Sequence[int]] | Tensor,
    tokenizer: PreTrainedTokenizerBase | None = None,
    length: int | None = None,
    bos: int | None = None,
    separator: str = SEPARATOR,
) -> Sequences:
    """Sequences from texts, from lists of token ids, or from a tensor (N, L) of token ids, which stays as it is.

    Texts and lists are packed one behind the other and cut into sequences of `length` tokens; a rest that fills no
    sequence is dropped. `bos` is a token to put in front of each sequence, within its length; `separator` stands behind
    each text. UsageError for data that fill no sequence, and for what is missing to cut them.
    """
    if isinstance(data, Tensor):
        if data.dim() != 2 or data.is_floating_point() or data.numel() == 0:
            raise UsageError(f"data: a tensor of token ids has the shape (N, L), not {tuple(data.shape)} {data.dtype}")
        return Sequences(data.long().cpu())
    if length is None:
        raise UsageError("length: texts and lists of token ids are cut into sequences, say of how many tokens")
    ids = cut(torch.tensor(_tokens(data, tokenizer, separator), dtype=torch.long), length, bos)
    if not len(ids):
        raise UsageError(f"length: the data are shorter than one sequence of {length} tokens")
    return Sequences(ids)


def _tokens(
    documents: Sequence[str] | Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase | None, separator: str
) -> list[int]:
    texts = [document for document in documents if isinstance(document, str)]
    if not texts:
        return list(chain.from_iterable(documents))  # type: ignore[arg-type]
    if tokenizer is None or len(texts) < len(documents):
        raise UsageError("data: texts need a tokenizer, and cannot be mixed with anything else")
    return pack(tokenizer, texts, separator)


def pack(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], separator: str = SEPARATOR, most: int | None = None
) -> list[int]:
    """The first `most` tokens, or all, of texts one behind the other, each followed by the separator's tokens."""
    between = encode(tokenizer, [separator])[0]
    tokens: list[int] = []
    rest = iter(texts)
    while (most is None or len(tokens) < most) and (batch := list(islice(rest, BATCH))):
        tokens += chain.from_iterable([*document, *between] for document in encode(tokenizer, batch))
    return tokens[:most]


def cut(tokens: Tensor, length: int, bos: int | None) -> Tensor:
    """Tokens (T,) in sequences (N, length) without overlap, with `bos` as the first token of each where it is given."""
    fresh = length if bos is None else length - 1
    count = len(tokens) // fresh
    return led_by(bos, tokens[: count * fresh].view(count, fresh))


def led_by(bos: int | None, rows: Tensor) -> Tensor:
    """Rows (N, L) with the token `bos` in front of each, (N, L + 1); as they are where it is None."""
    return rows if bos is None else torch.cat([torch.full((len(rows), 1), bos), rows], dim=1)


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], special: bool = False) -> list[list[int]]:
    """Token ids of each text; `special`: with the tokens that the tokenizer adds by itself."""
    encoded = tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
    assert isinstance(encoded, list)
    return encoded
