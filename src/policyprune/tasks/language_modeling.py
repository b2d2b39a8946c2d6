"""Next-token prediction: calibration sequences, test windows, and the loss of each sequence."""

import hashlib
import logging
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.config.schema import LanguageModeling
from policyprune.errors import UsageError
from policyprune.models.sequences import token_losses
from policyprune.tasks.bos import LENGTH, WINDOWS, decide, led_by
from policyprune.tasks.corpora import calibration_documents, test_documents

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextTask:
    """Tokenised text. `calibration` is (N, L), `test` is flat; `protocol` says how both were made.

    `bos` is the token in front of each window, which each calibration sequence has too; None: they begin anywhere.
    """

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
        if not len(self.test):
            raise UsageError(
                "task.test_fraction: no document fell into the held-out part, give task.test_files or a larger share"
            )
        if count == 0:
            raise UsageError(
                f"evaluation.lengths: {length} is more than the {len(self.test)} tokens of the test split, use less"
            )
        return led_by(self.bos, self.test[: count * fresh].view(count, fresh))


def build(
    config: LanguageModeling, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None
) -> TextTask:
    """Read, split and tokenise the corpus; UsageError when it is too small for what is asked.

    `model` is asked where `task.bos=auto` leaves open how its sequences and windows begin.
    """
    held_out = test_documents(config)
    keys = {document.key for document in held_out if document.text.strip()}
    config, measured = _with_bos(config, tokenizer, model, keys)
    text = config.separator.join(document.text for document in held_out)
    test = torch.tensor(_encode(tokenizer, [text], special=config.bos == "text")[0], dtype=torch.long)
    protocol = {
        "corpus": config.name,
        "source": config.source or config.files,
        "subset": config.subset,
        **({"test_source": config.test_source, "test_subset": config.test_subset} if config.test_source else {}),
        "separator": config.separator,
        "bos": config.bos,
        **({"bos_measured": measured} if measured else {}),
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
    return TextTask(_calibration(config, tokenizer, keys, bos), test, bos, protocol)


def _with_bos(
    config: LanguageModeling, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None, held_out: set[str]
) -> tuple[LanguageModeling, dict[str, float | int]]:
    """The config with `auto` decided, and both losses of the model, whatever the config says.

    They are of the same text whatever the run's seed.
    """
    if tokenizer.bos_token_id is None:
        if config.bos == "window":
            raise UsageError("task.bos: 'window', but this tokenizer has no BOS token, use text or none")
        return (replace(config, bos="none") if config.bos == "auto" else config), {}
    if model is None:
        assert config.bos != "auto", "only a model can tell where BOS has to stand"
        return config, {}
    seeded = replace(config, calibration=replace(config.calibration, seed=0))
    tokens = _tokens(seeded, tokenizer, held_out, WINDOWS * LENGTH)
    if len(tokens) < 2:
        key = "source" if config.source else "files"
        raise UsageError(f"task.{key}: no text is left for calibration, all of it is held out for the test")
    chosen, measured = decide(model, int(tokenizer.bos_token_id), torch.tensor(tokens))
    losses = measured["loss_with_bos"], measured["loss_without_bos"]
    wanted = f"auto: {chosen}" if config.bos == "auto" else config.bos
    log.info("task.bos=%s, the model's loss is %.3f with BOS in front of windows, %.3f without", wanted, *losses)
    return (replace(config, bos=chosen) if config.bos == "auto" else config), measured


def _calibration(
    config: LanguageModeling, tokenizer: PreTrainedTokenizerBase, held_out: set[str], bos: int | None
) -> Tensor:
    """Sequences (count, length) cut from the packed documents and shuffled, led by `bos` where it is given."""
    count, length = config.calibration.count, config.calibration.length
    fresh = length if bos is None else length - 1
    tokens = _tokens(config, tokenizer, held_out, count * fresh)
    if len(tokens) < count * fresh:
        raise UsageError(
            f"task.calibration.count: {count} sequences of {length} tokens are "
            f"more than the corpus holds, use at most {len(tokens) // fresh}"
        )
    sequences = torch.tensor(tokens, dtype=torch.long).view(count, fresh)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(config.calibration.seed))
    return led_by(bos, sequences[order])


def _tokens(config: LanguageModeling, tokenizer: PreTrainedTokenizerBase, held_out: set[str], wanted: int) -> list[int]:
    """The first `wanted` tokens, or all there are, of the calibration documents packed one behind the other."""
    separator = _encode(tokenizer, [config.separator])[0]
    documents = calibration_documents(config, held_out)
    tokens: list[int] = []
    while len(tokens) < wanted and (batch := [document.text for document in islice(documents, 64)]):
        tokens += _join(_encode(tokenizer, batch), separator)
    return tokens[:wanted]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], special: bool = False) -> list[list[int]]:
    encoded = tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
    assert isinstance(encoded, list)
    return encoded


def _join(documents: list[list[int]], separator: list[int]) -> list[int]:
    return [token for document in documents for token in (*document, *separator)]
