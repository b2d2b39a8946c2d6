"""Next-token prediction: calibration sequences, test windows, and the loss of each sequence."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.config.schema import LanguageModeling
from policyprune.errors import UsageError
from policyprune.models.causal_loss import token_losses
from policyprune.tasks.corpora import Document, calibration_documents, test_documents


@dataclass(frozen=True)
class TextTask:
    """Tokenised text. `calibration` is (N, L), `test` is flat; `protocol` says how both were made."""

    calibration: Tensor
    test: Tensor
    bos: int | None
    protocol: dict[str, Any]

    def loss(self, model: PreTrainedModel, rows: Tensor) -> Tensor:
        """Mean next-token loss of each calibration sequence: rows (B,) -> (B,) float32, on the model's device."""
        return token_losses(model, self.calibration[rows].to(model.device, non_blocking=True)).mean(-1)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each calibration sequence, all the same."""
        return torch.full((len(self.calibration),), self.calibration.shape[1])

    def inputs(self, rows: Tensor) -> dict[str, Tensor]:
        """Arguments of the model's forward for calibration sequences: rows (B,)."""
        return {"input_ids": self.calibration[rows]}

    def windows(self, length: int, max_tokens: int | None) -> Tensor:
        """Non-overlapping test windows (N, length), at most `max_tokens` tokens, the BOS token first where asked."""
        fresh = length if self.bos is None else length - 1
        count = len(self.test) // fresh
        if max_tokens is not None:
            count = min(count, max(1, max_tokens // length))
        if count == 0:
            raise UsageError(
                f"evaluation.lengths: {length} is more than the {len(self.test)} tokens of the test split, use less"
            )
        windows = self.test[: count * fresh].view(count, fresh)
        if self.bos is None:
            return windows
        return torch.cat([torch.full((count, 1), self.bos), windows], dim=1)


def build(config: LanguageModeling, tokenizer: PreTrainedTokenizerBase) -> TextTask:
    """Read, split and tokenise the corpus; UsageError when it is too small for what is asked."""
    if config.bos == "window" and tokenizer.bos_token_id is None:
        raise UsageError("task.bos: 'window', but this tokenizer has no BOS token, use text or none")
    held_out = test_documents(config)
    text = config.separator.join(document.text for document in held_out)
    test = torch.tensor(_encode(tokenizer, [text], special=config.bos == "text")[0], dtype=torch.long)
    protocol = {
        "corpus": config.name,
        "source": config.source or config.files,
        "subset": config.subset,
        **({"test_source": config.test_source, "test_subset": config.test_subset} if config.test_source else {}),
        "separator": config.separator,
        "bos": config.bos,
        "tokenizer": hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:12],
        "calibration": {
            "split": config.calibration_split,
            "count": config.calibration.count,
            "length": config.calibration.length,
            "seed": config.calibration.seed,
        },
        "test_split": config.test_split if config.source or config.test_source else "held-out documents",
        "test_text": hashlib.sha256(text.encode()).hexdigest()[:12],
    }
    bos = int(tokenizer.bos_token_id) if config.bos == "window" else None
    documents = calibration_documents(config, {document.key for document in held_out if document.text.strip()})
    return TextTask(_calibration(config, tokenizer, documents), test, bos, protocol)


def _calibration(config: LanguageModeling, tokenizer: PreTrainedTokenizerBase, documents: Iterator[Document]) -> Tensor:
    """Documents packed one behind the other with the separator, cut into (count, length)."""
    wanted = config.calibration.count * config.calibration.length
    separator = _encode(tokenizer, [config.separator])[0]
    tokens: list[int] = []
    batch: list[str] = []
    for document in documents:
        batch.append(document.text)
        if len(batch) == 64:
            tokens += _join(_encode(tokenizer, batch), separator)
            batch = []
            if len(tokens) >= wanted:
                break
    tokens += _join(_encode(tokenizer, batch), separator) if batch else []
    if len(tokens) < wanted:
        most = len(tokens) // config.calibration.length
        raise UsageError(
            f"task.calibration.count: {config.calibration.count} sequences of {config.calibration.length} tokens are "
            f"more than the corpus holds, use at most {most}"
        )
    sequences = torch.tensor(tokens[:wanted], dtype=torch.long).view(config.calibration.count, -1)
    order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(config.calibration.seed))
    return sequences[order]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], special: bool = False) -> list[list[int]]:
    encoded = tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
    assert isinstance(encoded, list)
    return encoded


def _join(documents: list[list[int]], separator: list[int]) -> list[int]:
    return [token for document in documents for token in (*document, *separator)]
