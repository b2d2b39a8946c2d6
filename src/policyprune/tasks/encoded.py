"""Tokenised examples, padded once and cut to the longest of each batch."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """Arguments of a model's forward, each (N, longest), and the tokens of each example without padding (N,)."""

    tensors: dict[str, Tensor]
    lengths: Tensor

    def first(self, count: int) -> "Encoded":
        """The first `count` examples."""
        return Encoded({name: tensor[:count] for name, tensor in self.tensors.items()}, self.lengths[:count])

    def inputs(self, rows: Tensor) -> dict[str, Tensor]:
        """The examples `rows` (B,), no wider than the longest of them."""
        longest = int(self.lengths[rows].max())
        return {name: tensor[rows, :longest] for name, tensor in self.tensors.items()}


def encode(tokenizer: PreTrainedTokenizerBase, examples: dict[str, list[list[int]]]) -> Encoded:
    """Pad lists of input_ids (and token_type_ids) to one width, with an attention mask."""
    ids = [torch.tensor(row) for row in examples["input_ids"]]
    lengths = torch.tensor([len(row) for row in ids])
    pad = float(tokenizer.pad_token_id or 0)
    tensors = {"input_ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad)}
    width = tensors["input_ids"].shape[1]
    tensors["attention_mask"] = (torch.arange(width) < lengths[:, None]).long()
    if "token_type_ids" in examples:
        types = [torch.tensor(row) for row in examples["token_type_ids"]]
        tensors["token_type_ids"] = torch.nn.utils.rnn.pad_sequence(types, batch_first=True)
    return Encoded(tensors, lengths)
