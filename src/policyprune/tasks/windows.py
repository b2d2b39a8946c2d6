"""Long contexts in overlapping windows of tokens, with the place of the answer in each."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from policyprune.config.schema import QuestionAnswering
from policyprune.errors import UsageError
from policyprune.tasks.encoded import Encoded, encode


@dataclass(frozen=True)
class Windows:
    """Encoded windows, the question that each belongs to (N,), and character offsets of their context tokens.

    `spans` (N, 2) are the tokens of the answer, (0, 0) where the window holds none.
    """

    encoded: Encoded
    question: Tensor
    offsets: list[list[tuple[int, int] | None]]
    spans: Tensor


def choose(windows: Windows, index: Tensor) -> Windows:
    """The windows `index`."""
    tensors = {name: tensor[index] for name, tensor in windows.encoded.tensors.items()}
    encoded = Encoded(tensors, windows.encoded.lengths[index])
    return Windows(encoded, windows.question[index], [windows.offsets[i] for i in index.tolist()], windows.spans[index])


def make_windows(rows: list[dict[str, Any]], config: QuestionAnswering, tokenizer: PreTrainedTokenizerBase) -> Windows:
    """Question and context, the context in windows of `max_length` that overlap by `stride` tokens."""
    room = config.max_length - config.stride - tokenizer.num_special_tokens_to_add(pair=True) - 1
    if room < 1:
        raise UsageError(f"task.stride: {config.stride} leaves no room for a question in {config.max_length} tokens")
    asked = [row["question"].strip() for row in rows]
    for index, ids in enumerate(tokenizer(asked, add_special_tokens=False)["input_ids"]):
        if len(ids) > room:  # the tokenizer panics where the context has no more room than the stride
            asked[index] = tokenizer.decode(ids[:room])
    encoded = tokenizer(
        asked,
        [row["context"] for row in rows],
        truncation="only_second",
        max_length=config.max_length,
        stride=config.stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    question = list(encoded["overflow_to_sample_mapping"])
    offsets, spans = [], []
    for index, pairs in enumerate(encoded["offset_mapping"]):
        inside = encoded.sequence_ids(index)
        own = [tuple(pair) if inside[token] == 1 else None for token, pair in enumerate(pairs)]
        offsets.append(own)
        spans.append(_span(own, rows[question[index]]))
    return Windows(encode(tokenizer, encoded), torch.tensor(question), offsets, torch.tensor(spans))


def _span(offsets: list[tuple[int, int] | None], row: dict[str, Any]) -> tuple[int, int]:
    """First and last token of the answer in a window, (0, 0) if it is not wholly inside."""
    if not row["answers"]["text"]:
        return 0, 0
    text, start = row["answers"]["text"][0], row["answers"]["answer_start"][0]
    if row["context"][start : start + len(text)] != text:  # some published offsets are off
        start = row["context"].find(text)
    end = start + len(text)
    tokens = [token for token, pair in enumerate(offsets) if pair and pair[0] < end and pair[1] > start]
    context = [pair for pair in offsets if pair]
    if start < 0 or not tokens or context[0][0] > start or context[-1][1] < end:
        return 0, 0
    return tokens[0], tokens[-1]
